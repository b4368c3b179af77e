"""Turns the output ids of one request into text, with stop strings, events and a result.

The engine pushes outputs (`on_output`), and the HTTP side pulls events (`next_events`) or the result (`result`). A list
and a future connect the two sides.
"""

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from textmill_router.request import (
    NO_EFFORT,
    Failure,
    FailureCode,
    FinishReason,
    GenerationRequest,
    OutputSink,
    PromptLogprobs,
    RequestId,
    RequestOutput,
    RequestTimes,
    TopTokens,
)
from textmill_router.text.events import (
    GenerationFailed,
    GenerationResult,
    PromptToken,
    TextOptions,
    TokenEvent,
    TopToken,
)
from textmill_router.text.stop_strings import StopStrings
from textmill_router.text.tokenization import Tokenizer


class Engine(Protocol):
    """The methods of the engine loop that a generation needs."""

    def submit(self, request: GenerationRequest, sink: OutputSink) -> None: ...
    def cancel(self, request_id: RequestId) -> None: ...
    def pause(self, request_id: RequestId, is_paused: bool) -> None: ...


# A stream that has tokens waits this long after its deadline for one more token, so that it ends with a token.
LAST_TOKEN_GRACE_S = 0.2
# A request rests once so many of its events wait for a client that does not read. Some hundred bytes each are kept.
MAX_WAITING_EVENTS = 256
# Takes events at once, in the engine's turn of the loop, and returns whether it took them; must not block or raise.
EventPush = Callable[[list[TokenEvent]], bool]


class Generation:
    """The output of one request, made by `start_generation`. Leaving this async context manager cancels the request.

    One task reads a generation, either with `next_events` or with `result`.
    """

    __slots__ = (
        "_admitted_s",
        "_detokenizer",
        "_effort",
        "_engine",
        "_events",
        "_failure",
        "_fast_reader",
        "_first_token_s",
        "_has_plain_text",
        "_is_paused",
        "_is_whole",
        "_late_timer",
        "_makes_events",
        "_num_tokens",
        "_options",
        "_prompt_logprobs",
        "_request",
        "_result",
        "_stops",
        "_text",
        "_timer",
        "_tokenizer",
        "_tokens",
        "_waiter",
    )

    def __init__(self, engine: Engine, tokenizer: Tokenizer, request: GenerationRequest, options: TextOptions) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._request = request
        self._options = options
        self._detokenizer = tokenizer.new_detokenizer(request.text_ids)
        # Without these options nothing but the tokens decides about text and end.
        self._has_plain_text = not (options.stop_strings or options.shown_specials or options.deadline_s is not None)
        self._stops = StopStrings(options.stop_strings, options.keep_stop_match) if options.stop_strings else None
        self._events: list[TokenEvent] = []  # that no reader has pulled yet
        self._tokens: list[TokenEvent] = []  # all tokens so far, for the result
        self._text: list[str] = []
        self._prompt_logprobs: list[PromptLogprobs] = []
        self._num_tokens = 0
        self._effort = NO_EFFORT
        self._admitted_s = 0.0
        self._first_token_s = 0.0
        self._makes_events = True
        self._is_paused = False  # because events wait
        self._is_whole = False  # `result` is wanted, not events
        self._timer: asyncio.TimerHandle | None = None
        self._late_timer: asyncio.TimerHandle | None = None
        self._result: GenerationResult | None = None
        self._failure: Failure | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._fast_reader: EventPush | None = None

    async def __aenter__(self) -> Self:
        if self._request.deadline_s is not None:
            late_s = max(0.0, self._request.deadline_s - time.monotonic())
            self._late_timer = asyncio.get_running_loop().call_later(late_s, self._on_late)
        if self._options.deadline_s is not None:
            delay_s = max(0.0, self._options.deadline_s - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_deadline)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for timer in (self._timer, self._late_timer):
            if timer is not None:
                timer.cancel()
        self.cancel()

    @property
    def request(self) -> GenerationRequest:
        return self._request

    @property
    def times(self) -> RequestTimes:
        """The times of the request so far. A request that has no token tells nothing but its arrival."""
        arrival_s = self._request.arrival_s
        if not self._first_token_s:
            return RequestTimes(arrival_s)
        end_s = None if self._result is None else self._admitted_s + self._result.inference_s
        return RequestTimes(arrival_s, self._admitted_s, self._first_token_s, end_s)

    def prompt_tokens(self) -> list[PromptToken]:
        """Return the prompt with its log-probabilities, which are complete once an output token has come."""
        return self._prompt_tokens()

    def cancel(self) -> None:
        """End the request if it still runs. The next plan frees its slot and its blocks."""
        if self._result is None and self._failure is None:
            self._engine.cancel(self._request.request_id)

    def push_to(self, reader: EventPush) -> None:
        """Hand all events but the last to `reader` while `next_events` waits; an event not taken wakes the task."""
        self._fast_reader = reader

    async def next_events(self) -> list[TokenEvent]:
        """Return all events since the last call, at least one. Raises GenerationFailed.

        Must not be called after the event that has the result.
        """
        while not self._events:
            if self._failure is not None:
                raise GenerationFailed(self._failure)
            assert self._result is None, "the last event has been given out"
            await self._wait()
        return self.take_events()

    def take_events(self) -> list[TokenEvent]:
        """Return all events since the last call, possibly none, without waiting."""
        events, self._events = self._events, []
        if self._is_paused:
            self._is_paused = False
            self._engine.pause(self._request.request_id, False)
        return events

    async def result(self) -> GenerationResult:
        """Wait for the whole answer and return it. Raises GenerationFailed."""
        self._makes_events = self._options.keep_tokens
        self._is_whole = True
        if self._is_over_time():
            self._on_deadline()
        while self._result is None:
            if self._failure is not None:
                raise GenerationFailed(self._failure)
            await self._wait()
        return self._result

    async def _wait(self) -> None:
        assert self._waiter is None, "one reader at a time"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _on_late(self) -> None:
        """End the request, because its answer is not complete by the time that the client gave."""
        if self._result is not None or self._failure is not None:
            return
        self._engine.cancel(self._request.request_id)
        where = f"after {self._num_tokens} tokens" if self._num_tokens else "before its first token"
        self._failure = Failure(FailureCode.LATE, f"x-request-timeout-ms has passed {where}")
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _is_over_time(self) -> bool:
        return self._options.deadline_s is not None and time.monotonic() >= self._options.deadline_s

    def _on_deadline(self, *, is_last_call: bool = False) -> None:
        if self._result is not None or self._failure is not None:
            return
        if self._num_tokens and not self._is_whole and not is_last_call:
            later = partial(self._on_deadline, is_last_call=True)
            self._timer = asyncio.get_running_loop().call_later(LAST_TOKEN_GRACE_S, later)
            return
        self._engine.cancel(self._request.request_id)
        text = self._detokenizer.flush()
        if self._stops is not None and self._num_tokens > self._request.parameters.min_new_tokens:
            text = self._stops.push(text)
            text += "" if self._stops.is_matched else self._stops.flush()
        self._text.append(text)
        if not self._num_tokens:  # the request may still be in the queue
            self._admitted_s = self._first_token_s = time.monotonic()
        self._finish(FinishReason.LENGTH)
        if not self._events:
            padding_token_id, index = self._options.padding_token_id, self._num_tokens + 1
            self._events.append(TokenEvent(index, padding_token_id, "", float("nan"), True, (), text))
        self._events[-1].result = self._result
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ---- called by the engine

    def on_output(self, output: RequestOutput) -> None:
        tokens = output.tokens
        finish = output.finish
        if output.prompt_logprobs is not None:
            self._prompt_logprobs.append(output.prompt_logprobs)
        if tokens and not self._num_tokens:
            self._effort = output.effort
            self._admitted_s = output.effort.admitted_s
            self._first_token_s = time.monotonic()
        last = len(tokens) - 1
        for index, token_id in enumerate(tokens):
            is_stopped = self._add_token(output, index, token_id, finish if index == last else None)
            if is_stopped:
                break
        self._failure = output.failure
        if self._waiter is None or self._waiter.done():
            if len(self._events) >= MAX_WAITING_EVENTS and not self._is_paused and not self._is_whole:
                self._is_paused = True
                self._engine.pause(self._request.request_id, True)
            return
        if self._result is not None or self._failure is not None:
            self._waiter.set_result(None)
        elif self._events:
            if self._fast_reader is not None and self._fast_reader(self._events):
                self._events = []
            else:
                self._waiter.set_result(None)

    def _add_token(self, output: RequestOutput, index: int, token_id: int, finish: FinishReason | None) -> bool:
        """Add one token. Return whether a stop string or the deadline ended the request with this token."""
        self._num_tokens += 1
        if self._has_plain_text and finish is None:  # most tokens
            text = self._detokenizer.step(token_id)
            if text:
                self._text.append(text)
            if self._makes_events:
                self._new_event(output, index, token_id, text, text)
            return False
        is_late = finish is None and self._is_over_time()
        is_last = is_late or finish is not None
        # A stop id gives no text, even where its token is not special, as tokens around gaps in some vocabularies.
        text = "" if finish is FinishReason.STOP_ID else self._detokenizer.step(token_id)
        if token_id in self._options.shown_specials:
            text += self._detokenizer.flush() + self._tokenizer.id_to_text(token_id)
        if is_last:
            text += self._detokenizer.flush()
        released = text
        is_stopped = False
        stops = self._stops
        # The text of the tokens that the request must have at least holds no stop string and begins none.
        if stops is not None and self._num_tokens > self._request.parameters.min_new_tokens:
            released = stops.push(text)
            is_stopped = stops.is_matched
            if not is_stopped and self._is_hidden(token_id):
                released += stops.push(self._tokenizer.id_to_text(token_id), is_hidden=True)
                ends_by_itself = finish is FinishReason.EOS or finish is FinishReason.STOP_ID
                # Such a token keeps its own reason, unless it completes a stop string that the answer leaves out.
                cuts_text = stops.began_earlier and not self._options.keep_stop_match
                is_stopped = stops.is_matched and (cuts_text or not ends_by_itself)
            if is_last and not stops.is_matched:
                released += stops.flush()
        if released:
            self._text.append(released)
        event = None
        if self._makes_events:
            event = self._new_event(output, index, token_id, text, released)
        if is_stopped or is_last:
            if finish is None:
                self._engine.cancel(self._request.request_id)
            self._finish(FinishReason.STOP_STRING if is_stopped else finish or FinishReason.LENGTH, token_id)
            if event is not None:
                event.result = self._result
        return is_stopped or is_late

    def _is_hidden(self, token_id: int) -> bool:
        """Whether a stop string may match the token's text although the answer does not show that text."""
        return token_id not in self._options.shown_specials and self._tokenizer.is_special(token_id)

    def _new_event(self, output: RequestOutput, index: int, token_id: int, text: str, released: str) -> TokenEvent:
        is_special = self._tokenizer.is_special(token_id)
        event = TokenEvent(
            self._num_tokens,
            token_id,
            self._tokenizer.id_to_text(token_id) if is_special else text,
            output.logprobs[index] if output.logprobs else float("nan"),
            is_special,
            self._top_tokens(output.top_tokens[index]) if output.top_tokens else (),
            released,
        )
        self._events.append(event)
        if self._options.keep_tokens:
            self._tokens.append(event)
        return event

    def _finish(self, reason: FinishReason, last_id: int | None = None) -> None:
        now = time.monotonic()
        arrival_s = self._request.arrival_s
        stopped_by: str | int | None = last_id if reason is FinishReason.STOP_ID else None
        if reason is FinishReason.STOP_STRING and self._stops is not None:
            stopped_by = self._stops.matched
        self._result = GenerationResult(
            text="".join(self._text),
            finish_reason=reason,
            num_prompt_tokens=self._request.num_input_tokens,
            num_output_tokens=self._num_tokens,
            tokens=self._tokens,
            prompt_tokens=self._prompt_tokens() if self._request.wants_prompt_logprobs else [],
            num_cached_tokens=self._effort.num_cached_tokens,
            queue_s=self._admitted_s - arrival_s,
            inference_s=now - self._admitted_s,
            first_token_s=self._first_token_s - arrival_s,
            request_id=self._request.request_id,
            num_preemptions=self._effort.num_preemptions,
            num_steps=self._effort.num_chunk_steps + self._num_tokens,
            stopped_by=stopped_by,
            num_image_tokens=sum(item.num_rows for item in self._request.media),
        )

    def _top_tokens(self, top: TopTokens) -> tuple[TopToken, ...]:
        tokenizer = self._tokenizer
        return tuple(
            TopToken(token_id, tokenizer.id_to_text(token_id), logprob, tokenizer.is_special(token_id))
            for token_id, logprob in zip(top.ids, top.logprobs, strict=True)
        )

    def _prompt_tokens(self) -> list[PromptToken]:
        """Return the prompt's tokens. Position 0 has no probability.

        A position that no piece covers, such as a decoder's own first tokens, has none either, and neither has a
        placeholder of an image, for which the shard reports NaN.
        """
        logprobs: dict[int, float] = {}
        top: dict[int, TopTokens] = {}
        for piece in self._prompt_logprobs:
            known = enumerate(piece.logprobs, piece.start)
            logprobs.update((position, logprob) for position, logprob in known if not math.isnan(logprob))
            top.update(enumerate(piece.top, piece.start))
        return [
            PromptToken(
                token_id,
                self._tokenizer.id_to_text(token_id),
                logprobs.get(position),
                self._top_tokens(top[position]) if position in top else (),
            )
            for position, token_id in enumerate(self._request.text_ids)
        ]


def start_generation(
    engine: Engine, tokenizer: Tokenizer, request: GenerationRequest, options: TextOptions
) -> Generation:
    """Submit the request. Raises the errors of `EngineLoop.submit`. Enter the generation with `async with` at once."""
    generation = Generation(engine, tokenizer, request, options)
    engine.submit(request, generation)
    return generation
