"""Writes completions as /v1 has them, whole and as the chunks of a stream."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from textmill_router.api.openai.completion_prompts import CompletionPrompt
from textmill_router.api.openai.prompt_logprobs import PromptLogprobs, shown_prompt_logprobs
from textmill_router.api.openai.types import (
    FINISH_REASONS,
    LEAST_LOGPROB,
    NO_USAGE,
    ChunkExtras,
    ChunkTail,
    Envelope,
    Usage,
    finite_logprob,
    shown_extras,
)
from textmill_router.request import FinishReason
from textmill_router.serving.timings import Timings
from textmill_router.text.events import GenerationResult, PromptToken, TokenEvent, TopToken
from textmill_router.text.tokenization import Tokenizer

# Makes a JSON string of a text, with the C function behind `json.dumps`, and escapes no character that UTF-8 can hold.
_quote = encode_basestring


class LegacyLogprobs(msgspec.Struct, frozen=True, gc=False):
    """The `logprobs` of a completion. The lists are parallel; offsets are in characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True, gc=False):
    """One choice of a whole answer."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: str
    token_ids: list[int] | UnsetType = UNSET  # with `return_token_ids`
    prompt_token_ids: list[int] | UnsetType = UNSET  # with `return_token_ids`
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET  # with `prompt_logprobs`
    stop_reason: str | int | UnsetType | None = UNSET  # with `stop` or `stop_token_ids`


class Completion(msgspec.Struct, frozen=True, gc=False):
    """The answer that is not streamed. Without choices it is the chunk of usage, which ends a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None
    timings: Timings | UnsetType = UNSET  # with `"textmill": {"timings": true}`


def completion(
    envelope: Envelope, choices: list[CompletionChoice], usage: Usage, timings: Timings | UnsetType = UNSET
) -> bytes:
    """Return the JSON of a whole answer, or of a stream's chunk of usage."""
    return msgspec.json.encode(
        Completion(
            envelope.id,
            "text_completion",
            envelope.created,
            envelope.model,
            envelope.system_fingerprint,
            choices,
            usage,
            timings,
        )
    )


@dataclass(slots=True)
class _Entries:
    """The tokens of a `logprobs` object while the object grows."""

    wants_top: bool
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    top: list[dict[str, float] | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def take(self) -> LegacyLogprobs:
        """Return the tokens that were added since the last call of this method."""
        taken = LegacyLogprobs(self.tokens, self.logprobs, self.top if self.wants_top else None, self.offsets)
        self.tokens, self.logprobs, self.top, self.offsets = [], [], [], []
        return taken


class ChoiceLogprobs:
    """The `logprobs` object of one choice. A token is shown when its text is; tokens of a stop string are not shown."""

    def __init__(self, tokenizer: Tokenizer, *, wants_top: bool, echoed_characters: int) -> None:
        self._tokenizer = tokenizer
        self._entries = _Entries(wants_top)
        self._base = echoed_characters
        self._held: list[tuple[int, TokenEvent]] = []  # with the place in the output text where the token begins
        self._num_seen = 0  # characters of all output tokens
        self._num_released = 0

    def add_prompt(self, tokens: Sequence[PromptToken], offsets: Sequence[int]) -> None:
        """Add the tokens of the prompt, which come before all others."""
        for token, offset in zip(tokens, offsets, strict=True):
            self._add(token.id, token.logprob, token.top_tokens, offset)

    def add_output(self, events: Sequence[TokenEvent]) -> None:
        """Add the tokens of events, which come in order."""
        for event in events:
            self._held.append((self._num_seen, event))
            self._num_seen += 0 if event.is_special else len(event.text)
            self._num_released += len(event.released_text)
        result = events[-1].result if events else None
        if result is None:
            self._release(self._num_released)
        else:
            is_stopped = result.finish_reason is FinishReason.STOP_STRING
            self._release(self._num_released if is_stopped else self._num_seen, also_empty=not is_stopped)

    def take(self) -> LegacyLogprobs:
        """Return the object of the tokens since the last call of this method."""
        return self._entries.take()

    def _release(self, end: int, *, also_empty: bool = False) -> None:
        """Show the tokens that begin before `end`, and with `also_empty` all others too."""
        while self._held and (self._held[0][0] < end or also_empty):
            start, event = self._held.pop(0)
            self._add(event.id, event.logprob, event.top_tokens, self._base + min(start, self._num_released))

    def _add(self, token_id: int, logprob: float | None, top: Sequence[TopToken], offset: int) -> None:
        entries = self._entries
        name = self._name(token_id)
        entries.tokens.append(name)
        entries.logprobs.append(None if logprob is None else finite_logprob(logprob))
        entries.offsets.append(offset)
        if not entries.wants_top:
            return
        if logprob is None:
            entries.top.append(None)
            return
        shown = {name: finite_logprob(logprob)}
        for token in top:
            other = self._name(token.id)
            shown[other] = max(shown.get(other, LEAST_LOGPROB), finite_logprob(token.logprob))
        entries.top.append(shown)

    def _name(self, token_id: int) -> str:
        """Return a token's text, or its bytes where they are part of a character, so that no two tokens look alike."""
        data = self._tokenizer.id_to_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


@dataclass(frozen=True, slots=True)
class ChoiceForm:
    """The parts that a choice shows. `has_output` is false for `max_tokens: 0`, which shows the prompt alone."""

    prompt: CompletionPrompt
    echoes: bool
    has_output: bool
    new_logprobs: Callable[[], ChoiceLogprobs] | None
    has_token_ids: bool = False
    has_stop_reason: bool = False
    num_prompt_alternatives: int | None = None  # of `prompt_logprobs`; None where these are not shown


def whole_choice(
    index: int, form: ChoiceForm, result: GenerationResult, prompt_tokens: Sequence[PromptToken]
) -> CompletionChoice:
    """Return one choice. `prompt_tokens` are needed where the choice shows the prompt's log-probabilities."""
    text = form.prompt.text if form.echoes else ""
    reason = "length"
    if form.has_output:
        text += result.text
        reason = FINISH_REASONS[result.finish_reason]
    shown = None
    if form.new_logprobs is not None:
        logprobs = form.new_logprobs()
        if form.echoes:
            logprobs.add_prompt(prompt_tokens, form.prompt.offsets)
        if form.has_output:
            logprobs.add_output(result.tokens)
        shown = logprobs.take()
    extras = shown_extras(result, has_ids=form.has_token_ids, has_stop_reason=form.has_stop_reason)
    if form.has_token_ids and not form.has_output:
        extras["token_ids"] = []
    if form.has_token_ids:
        extras["prompt_token_ids"] = list(form.prompt.intake.prompt_ids)
    if form.num_prompt_alternatives is not None:
        extras["prompt_logprobs"] = shown_prompt_logprobs(prompt_tokens, form.num_prompt_alternatives)
    return CompletionChoice(index, text, shown, reason, **extras)


class CompletionChunks:
    """Writes the chunks of one choice. Only what changes is encoded per token.

    The last chunk has the finish reason and no text, as at OpenAI. `tail` says which `usage` the chunks have.
    """

    def __init__(
        self,
        envelope: Envelope,
        index: int,
        form: ChoiceForm,
        prompt_tokens: Callable[[], Sequence[PromptToken]],
        *,
        tail: ChunkTail = NO_USAGE,
        extras: ChunkExtras | None = None,
    ) -> None:
        self._head = (
            f'data: {{"id":{_quote(envelope.id)},"object":"text_completion","created":{envelope.created},'
            f'"model":{_quote(envelope.model)},"system_fingerprint":{_quote(envelope.system_fingerprint)},'
            f'"choices":[{{"index":{index},"text":'
        )
        self._form = form
        self._prompt_tokens = prompt_tokens  # to be asked once a token has come
        self._logprobs = None if form.new_logprobs is None else form.new_logprobs()
        self._tail_of = tail.after
        self._last_tail_of = tail.last
        self._extras = extras
        self._is_first = True

    def encode(self, events: list[TokenEvent]) -> bytes:
        """Return the chunk of these events, possibly none. The last event has one more chunk for the finish reason."""
        form = self._form
        text = "".join([event.released_text for event in events]) if form.has_output else ""
        if self._is_first and form.echoes:
            text = form.prompt.text + text
            if self._logprobs is not None:
                self._logprobs.add_prompt(self._prompt_tokens(), form.prompt.offsets)
        self._is_first = False
        shown = "null"
        if self._logprobs is not None:
            if form.has_output:
                self._logprobs.add_output(events)
            entries = self._logprobs.take()
            shown = msgspec.json.encode(entries).decode() if entries.tokens else "null"
        result = events[-1].result
        more = last = ""
        if self._extras is not None:
            if form.has_output:
                self._extras.add(event.id for event in events)
            more = self._extras.take() if text or shown != "null" else ""
            last = "" if result is None else self._extras.take(result)
        chunk, tail = "", self._tail_of(events[-1].index if form.has_output else 0)
        if text or shown != "null":
            chunk = f'{self._head}{_quote(text)},"logprobs":{shown},"finish_reason":null{more}}}]{tail}'
        if result is not None:
            reason = FINISH_REASONS[result.finish_reason] if form.has_output else "length"
            tail = self._last_tail_of(events[-1].index if form.has_output else 0, result)
            chunk += f'{self._head}"","logprobs":null,"finish_reason":"{reason}"{last}}}]{tail}'
        return chunk.encode("utf-8", "replace")
