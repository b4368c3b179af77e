"""The texts that one search by beams finds. A search has no events, because its last step may change all tokens."""

import asyncio
import time
from types import TracebackType
from typing import Self

from textmill_router.request import (
    NO_EFFORT,
    BeamSequence,
    Failure,
    FailureCode,
    FinishReason,
    GenerationRequest,
    RequestOutput,
    RequestTimes,
)
from textmill_router.text.events import GenerationFailed, GenerationResult
from textmill_router.text.generation import Engine
from textmill_router.text.tokenization import Tokenizer


class BeamGeneration:
    """The output of one search. Leaving this async context manager cancels the request."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, request: GenerationRequest, eos_ids: frozenset[int]
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._request = request
        self._eos_ids = eos_ids
        self._effort = NO_EFFORT
        self._num_steps = 0
        self._first_token_s = 0.0
        self._end_s = 0.0
        self._sequences: tuple[BeamSequence, ...] = ()
        self._failure: Failure | None = None
        self._late_timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        if self._request.deadline_s is not None:
            late_s = max(0.0, self._request.deadline_s - time.monotonic())
            self._late_timer = asyncio.get_running_loop().call_later(late_s, self._on_late)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._late_timer is not None:
            self._late_timer.cancel()
        if not self._done.done():
            self._engine.cancel(self._request.request_id)
        self._done.cancel()

    @property
    def times(self) -> RequestTimes:
        """The times of the request so far."""
        arrival_s = self._request.arrival_s
        if not self._first_token_s:
            return RequestTimes(arrival_s)
        return RequestTimes(arrival_s, self._effort.admitted_s, self._first_token_s, self._end_s or None)

    async def results(self) -> list[GenerationResult]:
        """Wait for the end of the search, and return its sequences, best first. Raises GenerationFailed."""
        await self._done
        if self._failure is not None:
            raise GenerationFailed(self._failure)
        return [self._result(sequence) for sequence in self._sequences]

    def on_output(self, output: RequestOutput) -> None:
        """Take in what a step says of the search; the engine calls this."""
        self._num_steps += len(output.tokens)
        self._effort = output.effort
        if output.tokens and not self._first_token_s:
            self._first_token_s = time.monotonic()
        if output.finish is None and output.failure is None:
            return
        self._sequences, self._failure, self._end_s = output.sequences, output.failure, time.monotonic()
        if not self._done.done():
            self._done.set_result(None)

    def _on_late(self) -> None:
        """End the request, because its answer is not complete by the time that the client gave."""
        if self._done.done():
            return
        self._engine.cancel(self._request.request_id)
        self._failure = Failure(FailureCode.LATE, f"x-request-timeout-ms has passed after {self._num_steps} tokens")
        self._done.set_result(None)

    def _result(self, sequence: BeamSequence) -> GenerationResult:
        detokenizer = self._tokenizer.new_detokenizer(self._request.text_ids)
        text = "".join(detokenizer.step(token_id) for token_id in sequence.ids) + detokenizer.flush()
        ends_by_itself = len(sequence.ids) > 0 and sequence.ids[-1] in self._eos_ids
        arrival_s, effort = self._request.arrival_s, self._effort
        return GenerationResult(
            text=text,
            finish_reason=FinishReason.EOS if ends_by_itself else FinishReason.LENGTH,
            num_prompt_tokens=self._request.num_input_tokens,
            num_output_tokens=len(sequence.ids),
            tokens=[],
            prompt_tokens=[],
            num_cached_tokens=effort.num_cached_tokens,
            queue_s=effort.admitted_s - arrival_s,
            inference_s=self._end_s - effort.admitted_s,
            first_token_s=self._first_token_s - arrival_s,
            request_id=self._request.request_id,
            num_preemptions=effort.num_preemptions,
            num_steps=effort.num_chunk_steps + self._num_steps,
        )


def start_beam_generation(
    engine: Engine, tokenizer: Tokenizer, request: GenerationRequest, eos_ids: frozenset[int]
) -> BeamGeneration:
    """Submit the request. Raises the errors of `EngineLoop.submit`. Enter the result with `async with` at once."""
    generation = BeamGeneration(engine, tokenizer, request, eos_ids)
    engine.submit(request, generation)
    return generation
