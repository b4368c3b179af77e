"""POST /generate, /generate_stream and /: the native dialect's way from a body to an answer."""

import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from enum import Enum

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.disconnect import UntilClientLeaves
from textmill_router.api.error_responses import Header, error_kind, generation_error, native_error_body
from textmill_router.api.event_stream import EventStream
from textmill_router.api.intake import make_request, samplings, take_prompt
from textmill_router.api.json_body import ClientLeft, read_json
from textmill_router.api.native_answers import FINISH_REASONS, NativeEvents, mean_logprob, whole_answer
from textmill_router.api.native_types import CompatBody, GenerateBody, NativeParameters, wishes_of
from textmill_router.api.replies import Call, call_of, send_error, send_reply
from textmill_router.engine_loop import EngineUnavailable
from textmill_router.errors import ModelLoading, RequestError, ShuttingDown
from textmill_router.generation import (
    Generation,
    GenerationFailed,
    GenerationResult,
    TextOptions,
    TokenEvent,
    start_generation,
)
from textmill_router.request import GenerationRequest
from textmill_router.service import Backend, Service
from textmill_router.validation import CheckedParameters, check_parameters
from textmill_router.waiting_queue import QueueFull

log = logging.getLogger(__name__)

_NO_PARAMETERS = NativeParameters()


class GenerateMode(Enum):
    """Which of the three routes: shape of the answer and defaults differ."""

    WHOLE = "generate"
    STREAM = "generate_stream"
    COMPAT = "compat"  # the body says which; the answer is an array of one; the prompt is given back by default


class GenerateRoute:
    """An ASGI endpoint."""

    def __init__(self, service: Service, mode: GenerateMode) -> None:
        self._service = service
        self._mode = mode
        # `stream` is a field of `POST /` only; elsewhere it is unknown and so ignored, whatever it holds.
        body_type = CompatBody if mode is GenerateMode.COMPAT else GenerateBody
        self._decoder: msgspec.json.Decoder[GenerateBody] = msgspec.json.Decoder(body_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        service.metrics.num_requests += 1
        try:
            await self._answer(scope, receive, send)
        except ClientLeft:
            service.metrics.on_failure("dropped")
        except RequestError as error:
            service.metrics.on_failure(_failure_label(error))
            await send_error(scope, send, error)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        backend = service.open_backend()
        body = await read_json(scope, receive, self._decoder, service.settings.payload_limit)
        streams = self._mode is GenerateMode.STREAM or (isinstance(body, CompatBody) and bool(body.stream))
        checked = check_parameters(wishes_of(body.parameters, streams=streams), backend.limits)
        async with UntilClientLeaves(receive, service.metrics.on_abort):
            with service.admission.permits(checked.best_of):
                work = _Work(service, backend, call_of(scope), body, checked, self._mode)
                try:
                    if streams:
                        await work.stream(scope, send)
                    else:
                        await work.answer_whole(scope, send)
                except GenerationFailed as error:
                    raise generation_error(error.failure) from error
                except QueueFull as error:
                    raise service.admission.overloaded(f"Model is overloaded: {error}; try again later") from error
                except EngineUnavailable as error:
                    raise ShuttingDown(f"the engine has stopped: {error}", retry_after_s=1) from error


class _Work:
    """One admitted call."""

    def __init__(
        self,
        service: Service,
        backend: Backend,
        call: Call,
        body: GenerateBody,
        checked: CheckedParameters,
        mode: GenerateMode,
    ) -> None:
        parameters = body.parameters or _NO_PARAMETERS
        self._service = service
        self._backend = backend
        self._call = call
        self._text = body.inputs
        self._checked = checked
        self._mode = mode
        wants_full_text = parameters.return_full_text
        if wants_full_text is None:
            wants_full_text = mode is GenerateMode.COMPAT
        self._prefix = body.inputs if wants_full_text else ""
        self._wants_prompt_details = bool(parameters.decoder_input_details)
        self._wants_details = bool(parameters.details) or self._wants_prompt_details
        self._validation_s = 0.0

    async def stream(self, scope: Scope, send: Send) -> None:
        """Events until the last token; an error after the first of them is an event."""
        [request] = await self._requests(wants_logprobs=True)
        writer = NativeEvents(
            prompt=self._prefix,
            seed=_shown_seed(request),
            wants_details=self._wants_details,
            wants_top_tokens=self._checked.top_n_tokens > 0,
        )
        options = TextOptions(self._checked.stop, keep_tokens=False)
        stream = EventStream(scope, send, self._stream_headers())

        def write_now(events: list[TokenEvent]) -> bool:
            if not stream.can_write_now:
                return False
            stream.write_now(writer.encode(events))
            return True

        try:
            async with start_generation(self._backend.engine, self._backend.tokenizer, request, options) as generation:
                generation.read_fast(write_now)
                events = await generation.next_events()
                while events[-1].result is None:
                    await stream.write(writer.encode(events))
                    events = await generation.next_events()
                result = events[-1].result
                self._note_success(request, result)
                await stream.end(writer.encode(events))
        except GenerationFailed as failed:
            if not stream.is_started:
                raise
            error = generation_error(failed.failure)
            self._service.metrics.on_failure(_failure_label(error))
            await stream.end(b"data: " + native_error_body(error) + b"\n\n")
        finally:
            stream.close()

    async def answer_whole(self, scope: Scope, send: Send) -> None:
        """One answer when all sequences are complete."""
        is_compared = self._checked.best_of > 1
        requests = await self._requests(wants_logprobs=self._wants_details or is_compared)
        options = TextOptions(self._checked.stop, keep_tokens=self._wants_details or is_compared)
        async with AsyncExitStack() as stack:
            generations: list[Generation] = []
            for request in requests:
                generation = start_generation(self._backend.engine, self._backend.tokenizer, request, options)
                generations.append(await stack.enter_async_context(generation))
            results = [await generation.result() for generation in generations]
        best = max(results, key=mean_logprob)
        answer = whole_answer(
            results,
            [_shown_seed(request) for request in requests],
            prompt=self._prefix,
            wants_details=self._wants_details,
            wants_top_tokens=self._checked.top_n_tokens > 0,
        )
        chosen = results.index(best)
        self._note_success(requests[chosen], best, [*results[:chosen], *results[chosen + 1 :]])
        shown = [answer] if self._mode is GenerateMode.COMPAT else answer
        await send_reply(scope, send, 200, msgspec.json.encode(shown), headers=self._whole_headers(best))

    async def _requests(self, *, wants_logprobs: bool) -> list[GenerationRequest]:
        """Tokenise and check the budget: the last step in which the call can be refused for what it says."""
        intake = await take_prompt(self._backend, self._text, self._checked)
        self._validation_s = time.monotonic() - self._call.arrival_s
        self._service.metrics.on_validated(len(intake.prompt_ids), intake.max_new_tokens)
        return [
            make_request(
                self._backend,
                intake,
                self._checked,
                sampling,
                wants_logprobs=wants_logprobs,
                wants_prompt_logprobs=self._wants_prompt_details,
            )
            for sampling in samplings(self._checked)
        ]

    def _note_success(
        self, request: GenerationRequest, result: GenerationResult, others: Sequence[GenerationResult] = ()
    ) -> None:
        total_s = time.monotonic() - self._call.arrival_s
        self._service.metrics.on_success(result, validation_s=self._validation_s, total_s=total_s, others=others)
        log.info(
            "Success",
            extra={
                "request": self._call.request_id,
                "route": self._mode.value,
                "num_prompt_tokens": result.num_prompt_tokens,
                "num_cached_tokens": result.num_cached_tokens,
                "num_output_tokens": result.num_output_tokens,
                "finish_reason": FINISH_REASONS[result.finish_reason],
                "seed": _shown_seed(request),
                "total_ms": round(total_s * 1000, 1),
                "queue_ms": round(result.queue_s * 1000, 1),
                "inference_ms": round(result.inference_s * 1000, 1),
            },
        )

    def _stream_headers(self) -> list[Header]:
        return [
            (b"x-compute-type", self._service.compute_type(self._backend.facts).encode("latin-1", "replace")),
            (b"x-compute-characters", b"%d" % len(self._text)),
        ]

    def _whole_headers(self, result: GenerationResult) -> list[Header]:
        """Times in whole milliseconds, but x-compute-time in seconds."""
        total_s = time.monotonic() - self._call.arrival_s
        per_token_s = result.inference_s / max(1, result.num_output_tokens)
        return [
            *self._stream_headers(),
            (b"x-compute-time", b"%.6f" % total_s),
            (b"x-total-time", b"%d" % (total_s * 1000)),
            (b"x-validation-time", b"%d" % (self._validation_s * 1000)),
            (b"x-queue-time", b"%d" % (result.queue_s * 1000)),
            (b"x-inference-time", b"%d" % (result.inference_s * 1000)),
            (b"x-time-per-token", b"%d" % (per_token_s * 1000)),
            (b"x-prompt-tokens", b"%d" % result.num_prompt_tokens),
            (b"x-generated-tokens", b"%d" % result.num_output_tokens),
            (b"x-cached-prompt-tokens", b"%d" % result.num_cached_tokens),
        ]


def _shown_seed(request: GenerationRequest) -> int | None:
    return request.sampling.seed if request.sampling.do_sample else None


def _failure_label(error: RequestError) -> str:
    """Value of the label `err`: of few values, those of TGI where it has one."""
    if isinstance(error, ModelLoading):
        return "loading"
    if isinstance(error, ShuttingDown):
        return "shutting_down"
    status = error_kind(error).status
    return {424: "generation", 429: "overloaded", 500: "incomplete"}.get(status, "validation")
