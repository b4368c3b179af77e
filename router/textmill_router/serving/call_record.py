"""The facts of one admitted call that its headers, its log line and the metrics show."""

import logging
import math
import time
from collections.abc import Sequence

from textmill_router.errors import RequestError
from textmill_router.http.call import Call
from textmill_router.http.error_responses import Header
from textmill_router.http.event_stream import OpenStreams
from textmill_router.request import GenerationRequest
from textmill_router.serving.adapter_header import adapter_headers
from textmill_router.serving.call import failure_label, log_refusal
from textmill_router.serving.call_terms import CallTerms
from textmill_router.serving.prompts import TokenizedPrompt
from textmill_router.serving.room import check_prompts_fit
from textmill_router.serving.service import Backend, Service
from textmill_router.serving.timings import timings_header, timings_of
from textmill_router.serving.trace_notes import request_attributes, result_attributes
from textmill_router.text.beam_generation import BeamGeneration, start_beam_generation
from textmill_router.text.events import GenerationResult, TextOptions
from textmill_router.text.generation import Generation, start_generation
from textmill_router.tracing.call_trace import TimedRequest

log = logging.getLogger(__name__)


class CallRecord:
    """The facts of one call, kept from the check of its rules to its last token."""

    def __init__(self, service: Service, backend: Backend, call: Call, terms: CallTerms) -> None:
        self._service = service
        self._backend = backend
        self._call = call
        self.terms = terms
        self.num_sequences = 1  # that the call asks for, of all its prompts together
        self._validation_s = 0.0
        self._num_characters = 0
        self._num_prompts = 1
        self._answer_id: str | None = None

    @property
    def arrival_s(self) -> float:
        """The time at which the call came, on the clock of `time.monotonic`."""
        return self._call.arrival_s

    @property
    def model_name(self) -> str:
        """The name of what answers: the call's adapter, or else the model."""
        adapter = self.terms.adapter
        return self._service.settings.model_names[0] if adapter is None else adapter.name

    @property
    def open_streams(self) -> OpenStreams:
        """The streams of the server, of which the answer may become one."""
        return self._service.open_streams

    def note_failure(self, error: RequestError) -> None:
        """Note that the call failed after its answer had begun."""
        self._service.metrics.on_failure(failure_label(error))
        log_refusal(self._call, error, "Broken off")

    def note_validated(self, num_characters: int, intakes: Sequence[TokenizedPrompt]) -> None:
        """Note that the prompts obey all rules; `num_characters` is the length of all prompts together.

        Raises RuleBroken for the last rule, that the sequences fit the queue together.
        """
        if self.num_sequences > 1:
            num_per_prompt = self.num_sequences // len(intakes)
            check_prompts_fit(self._service, num_per_prompt * sum(len(intake.prompt_ids) for intake in intakes))
        self._validation_s = time.monotonic() - self._call.arrival_s
        self._num_characters = num_characters
        self._num_prompts = len(intakes)
        trace = self._call.trace
        if trace is not None:
            trace.validated_s = self._call.arrival_s + self._validation_s
            trace.attributes["gen_ai.usage.input_tokens"] = sum(len(intake.prompt_ids) for intake in intakes)
        for intake in intakes:
            self._service.metrics.on_validated(len(intake.prompt_ids), intake.max_new_tokens)

    def note_answer_id(self, answer_id: str) -> None:
        """Note the id that the answer shows in its body."""
        self._answer_id = answer_id

    def start(self, request: GenerationRequest, options: TextOptions) -> Generation:
        """Submit a request of the call, and return its generation, which must be entered with `async with` at once.

        Raises the errors of `EngineLoop.submit`.
        """
        generation = start_generation(self._backend.engine, self._backend.tokenizer, request, options)
        self._trace_request(request, options.stop_strings, generation)
        return generation

    def start_search(self, request: GenerationRequest) -> BeamGeneration:
        """Submit a request of the call that searches by beams, as `start` submits others."""
        backend = self._backend
        eos_ids = frozenset(backend.facts.eos_token_ids)
        generation = start_beam_generation(backend.engine, backend.tokenizer, request, eos_ids)
        self._trace_request(request, (), generation)
        return generation

    def _trace_request(self, request: GenerationRequest, stop: tuple[str, ...], timed: TimedRequest) -> None:
        trace = self._call.trace
        if trace is None:
            return
        if not trace.requests:
            trace.attributes |= request_attributes(request, stop, num_sequences=self.num_sequences // self._num_prompts)
        trace.requests.append(timed)

    def note_success(self, results: Sequence[GenerationResult], *, seed: int | None = None) -> None:
        """Note that the call is complete.

        `results` are the results of its sequences in order; `seed` is the seed of the first sequence if that sampled.
        """
        total_s = time.monotonic() - self._call.arrival_s
        first = results[0]
        trace = self._call.trace
        if trace is not None:
            model = self._service.settings.model_names[0]
            trace.attributes |= result_attributes(
                results, model=model, answer_id=self._answer_id, num_prompts=self._num_prompts
            )
            first_token_s = min(request.times.first_token_s or math.inf for request in trace.requests)
            trace.attributes["gen_ai.latency.time_to_first_token"] = first_token_s - self._call.arrival_s
            trace.attributes["gen_ai.latency.e2e"] = total_s
        self._service.metrics.on_success(first, validation_s=self._validation_s, total_s=total_s, others=results[1:])
        log.info(
            "Success",
            extra={
                "request": self._call.request_id,
                "trace": self._call.trace_id,
                "route": self._call.route,
                "caller": self._call.caller.name or None,
                "adapter": None if self.terms.adapter is None else self.terms.adapter.name,
                "request_ids": [result.request_id for result in results],
                "num_prompt_tokens": first.num_prompt_tokens,
                "num_cached_tokens": first.num_cached_tokens,
                "num_output_tokens": sum(result.num_output_tokens for result in results),
                "finish_reason": first.finish_reason.value,
                "status": 200,
                "seed": seed,
                "total_ms": round(total_s * 1000, 1),
                "queue_ms": round(first.queue_s * 1000, 1),
                "prefill_ms": round(first.prefill_s * 1000, 1),
                "decode_ms": round(first.decode_s * 1000, 1),
                "num_preemptions": sum(result.num_preemptions for result in results),
            },
        )

    def stream_headers(self) -> list[Header]:
        """Return the headers whose values are known when a stream begins."""
        return [
            (b"x-compute-type", self._service.compute_type(self._backend.facts).encode("latin-1", "replace")),
            (b"x-compute-characters", b"%d" % self._num_characters),
            *adapter_headers(self.terms.adapter),
        ]

    def whole_headers(self, results: Sequence[GenerationResult], num_prompt_tokens: int) -> list[Header]:
        """Return the headers of a whole answer. Times are those of the longest sequence.

        Times are in whole milliseconds, and x-compute-time is in seconds.
        """
        total_s = time.monotonic() - self._call.arrival_s
        inference_s = max(result.inference_s for result in results)
        num_output_tokens = sum(result.num_output_tokens for result in results)
        per_token_s = max(result.inference_s / max(1, result.num_output_tokens) for result in results)
        return [
            *self.stream_headers(),
            (b"x-compute-time", b"%.6f" % total_s),
            (b"x-total-time", b"%d" % (total_s * 1000)),
            (b"x-validation-time", b"%d" % (self._validation_s * 1000)),
            (b"x-queue-time", b"%d" % (max(result.queue_s for result in results) * 1000)),
            (b"x-inference-time", b"%d" % (inference_s * 1000)),
            (b"x-time-per-token", b"%d" % (per_token_s * 1000)),
            (b"x-prompt-tokens", b"%d" % num_prompt_tokens),
            (b"x-generated-tokens", b"%d" % num_output_tokens),
            (b"x-cached-prompt-tokens", b"%d" % results[0].num_cached_tokens),
            timings_header(timings_of(results)),
        ]
