"""The generating routes under /v2: `infer` of the Open Inference Protocol, and the generate extension."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TypeVar

import msgspec
from starlette.types import Scope, Send

from textmill_router.api.platforms.kserve_status import MODEL_VERSION, STYLE, asked_adapter, check_path
from textmill_router.api.platforms.kserve_types import (
    BYTES,
    INPUT,
    NO_PARAMETERS,
    OUTPUT,
    V2Answer,
    V2Details,
    V2Event,
    V2Finish,
    V2GenerateBody,
    V2InferAnswer,
    V2InferBody,
    V2OutputTensor,
    V2Parameters,
    V2StreamDetails,
    V2Token,
    requested_v2,
    texts_of,
)
from textmill_router.errors import RuleBroken, ValidationFailed
from textmill_router.exact_json import exact_decoder
from textmill_router.http.error_responses import error_event
from textmill_router.http.event_stream import EventStream
from textmill_router.http.replies import send_reply
from textmill_router.request import FinishReason, GenerationRequest
from textmill_router.serving.choice_streams import start_all, stream_choices
from textmill_router.serving.logprobs import shown_logprob
from textmill_router.serving.output_check import check_output
from textmill_router.serving.prompts import choice_parameters, make_request, take_prompt
from textmill_router.serving.route import GeneratingRoute, IncomingCall, PreparedCall
from textmill_router.serving.service import Service
from textmill_router.serving.stream_answer import stream_answer
from textmill_router.serving.validation import CheckedParameters, check_parameters
from textmill_router.text.events import GenerationResult, TextOptions, TokenEvent
from textmill_router.text.generation import Generation

_Body = TypeVar("_Body")

_FINISH: dict[FinishReason, V2Finish] = {
    FinishReason.LENGTH: "length",
    FinishReason.EOS: "eos_token",
    FinishReason.STOP_ID: "eos_token",
    FinishReason.STOP_STRING: "stop_sequence",
}


def v2_generate_route(service: Service, *, streams: bool) -> GeneratingRoute[V2GenerateBody]:
    """Return the ASGI endpoint of `/generate`, or with `streams` of `/generate_stream`."""

    def prepare(body: V2GenerateBody, call: IncomingCall) -> PreparedCall:
        return _prepare(call, body.parameters or NO_PARAMETERS, [body.text_input], _Generated(), streams=streams)

    return _route(service, V2GenerateBody, prepare, lambda body: body.parameters)


def v2_infer_route(service: Service) -> GeneratingRoute[V2InferBody]:
    """Return the ASGI endpoint of `/infer`."""

    def prepare(body: V2InferBody, call: IncomingCall) -> PreparedCall:
        texts = texts_of(body, call.service.settings.max_client_batch_size)
        if body.parameters is not None and body.parameters.details:
            raise ValidationFailed("`details` must be false here; POST .../generate has details", field="details")
        return _prepare(call, body.parameters or NO_PARAMETERS, texts, _Inferred(body), streams=False)

    return _route(service, V2InferBody, prepare, lambda body: body.parameters)


def _route(
    service: Service,
    body_type: type[_Body],
    prepare: Callable[[_Body, IncomingCall], PreparedCall],
    parameters_of: Callable[[_Body], V2Parameters | None],
) -> GeneratingRoute[_Body]:
    def reword(body: _Body, error: RuleBroken) -> None:
        has_short_name = (parameters_of(body) or NO_PARAMETERS).max_new_tokens is None
        error.reword({"inputs": INPUT, **({"max_new_tokens": "max_tokens"} if has_short_name else {})})

    return GeneratingRoute(
        service,
        exact_decoder(body_type),
        prepare,
        STYLE,
        check_model=lambda _, scope: check_path(scope, service),
        adapter_of=lambda _, scope: asked_adapter(scope, service),
        priority_of=lambda body: (parameters_of(body) or NO_PARAMETERS).priority,
        reword=reword,
    )


class _Generated:
    """Puts the one result of `/generate` into its answer."""

    def encode(self, name: str, results: list[GenerationResult], *, wants_details: bool) -> bytes:
        [result] = results
        details = V2Details(_FINISH[result.finish_reason], [_token(token) for token in result.tokens])
        answer = V2Answer(name, MODEL_VERSION, result.text, details if wants_details else msgspec.UNSET)
        return msgspec.json.encode(answer)


class _Inferred:
    """Puts the results of `/infer` into its answer, with shape and id of the body."""

    def __init__(self, body: V2InferBody) -> None:
        self._shape = body.inputs[0].shape
        self._id = msgspec.UNSET if body.id is None else body.id

    def encode(self, name: str, results: list[GenerationResult], *, wants_details: bool) -> bytes:
        tensor = V2OutputTensor(OUTPUT, self._shape, BYTES, [result.text for result in results])
        return msgspec.json.encode(V2InferAnswer(name, MODEL_VERSION, [tensor], self._id))


class _Events:
    """Writes the events of a stream: with details one for each token, or else one for each piece of text."""

    def __init__(self, name: str, *, wants_details: bool) -> None:
        self._name = name
        self._wants_details = wants_details

    def encode(self, events: list[TokenEvent]) -> bytes:
        """Return the events in one piece. The last event of a stream is there also where the event has no text."""
        if self._wants_details:
            return b"".join([self._event(one.released_text, self._details(one)) for one in events])
        text = "".join([one.released_text for one in events])
        return self._event(text, msgspec.UNSET) if text or events[-1].result is not None else b""

    def _details(self, event: TokenEvent) -> V2StreamDetails:
        finish = None if event.result is None else _FINISH[event.result.finish_reason]
        return V2StreamDetails(finish, _token(event))

    def _event(self, text: str, details: V2StreamDetails | msgspec.UnsetType) -> bytes:
        return error_event(msgspec.json.encode(V2Event(self._name, MODEL_VERSION, text, details)))


def _prepare(
    call: IncomingCall, parameters: V2Parameters, texts: list[str], form: _Generated | _Inferred, *, streams: bool
) -> PreparedCall:
    if parameters.stream is not None and parameters.stream != streams:
        raise ValidationFailed(
            f"`stream` must be {str(streams).lower()} here: POST .../generate_stream answers in events, the other "
            "routes answer once; leave the field out or call the other route",
            field="stream",
        )
    checked = check_parameters(requested_v2(parameters, streams=streams), call.backend.limits)
    work = _Work(call, checked, texts, form, wants_details=bool(parameters.details))
    return PreparedCall(work, num_sequences=len(texts), streams=streams, grammar=checked.generation.grammar)


class _Work:
    """One call, with one sequence for each text."""

    def __init__(
        self,
        call: IncomingCall,
        checked: CheckedParameters,
        texts: list[str],
        form: _Generated | _Inferred,
        *,
        wants_details: bool,
    ) -> None:
        self._backend, self._record = call.backend, call.record
        self._checked, self._texts, self._form = checked, texts, form
        self._wants_details = wants_details
        self._name: str = call.scope["path_params"]["model"]

    async def stream(self, scope: Scope, send: Send) -> None:
        """Send the text as events while the text is generated."""
        requests = await self._requests()

        async def write(stream: EventStream) -> bytes:
            async with AsyncExitStack() as stack:
                generations = await self._start(stack, requests, keep_tokens=False)
                writer = _Events(self._name, wants_details=self._wants_details)
                results = await stream_choices(stream, generations, [writer], self._check)
            self._record.note_success(results)
            return b""

        await stream_answer(scope, send, self._record, write)

    async def answer_whole(self, scope: Scope, send: Send) -> None:
        """Send one answer when all sequences are complete, with texts in the order of the prompts."""
        requests = await self._requests()
        async with AsyncExitStack() as stack:
            generations = await self._start(stack, requests, keep_tokens=self._wants_details)
            results = [await generation.result() for generation in generations]
        for result in results:
            self._check(result)
        self._record.note_success(results)
        data = self._form.encode(self._name, results, wants_details=self._wants_details)
        headers = self._record.whole_headers(results, sum(result.num_prompt_tokens for result in results))
        await send_reply(scope, send, 200, data, headers=headers)

    async def _requests(self) -> list[GenerationRequest]:
        """Tokenise the prompts and check their budgets. Texts of one call differ in their seeds where they sample."""
        prompts = [await take_prompt(self._backend, text, self._checked) for text in self._texts]
        self._record.note_validated(sum(map(len, self._texts)), prompts)
        return [
            make_request(
                self._backend,
                prompt,
                parameters,
                wants_logprobs=self._wants_details,
                wants_prompt_logprobs=False,
                top_n_tokens=0,
                terms=self._record.terms,
            )
            for prompt, parameters in zip(
                prompts, choice_parameters(self._checked.generation, len(prompts)), strict=True
            )
        ]

    async def _start(
        self, stack: AsyncExitStack, requests: list[GenerationRequest], *, keep_tokens: bool
    ) -> list[Generation]:
        max_time = self._checked.max_time
        options = TextOptions(
            self._checked.stop,
            keep_tokens=keep_tokens,
            deadline_s=None if max_time is None else self._record.arrival_s + max_time,
            padding_token_id=next(iter(self._backend.facts.eos_token_ids), 0),
        )
        return await start_all(stack, self._record, requests, options)

    def _check(self, result: GenerationResult) -> None:
        check_output(result, self._checked.asked_grammar)


def _token(event: TokenEvent) -> V2Token:
    return V2Token(event.id, event.text, shown_logprob(event.logprob), event.is_special)
