"""Writes chat answers as /v1 has them, whole and as the chunks of a stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any

import msgspec

from textmill_router.api.openai.prompt_logprobs import PromptLogprobs
from textmill_router.api.openai.types import (
    FINISH_REASONS,
    NO_USAGE,
    ChunkExtras,
    ChunkTail,
    Envelope,
    TokenLogprob,
    TopLogprob,
    Usage,
    finite_logprob,
    shown_extras,
)
from textmill_router.chat.answer_form import TextReader, was_cut
from textmill_router.parsers.deltas import (
    ContentText,
    Delta,
    ParsedMessage,
    ReasoningText,
    ToolArguments,
    ToolCallStart,
    merge,
)
from textmill_router.request import FinishReason
from textmill_router.serving.timings import Timings
from textmill_router.text.events import GenerationResult, TokenEvent
from textmill_router.text.tokenization import Tokenizer

# Makes a JSON string of a text, with the C function behind `json.dumps`, and escapes no character that UTF-8 can hold.
_quote = encode_basestring
_FUNCTION_CALL = "function_call"  # the deprecated form of a call, and its finish reason


class ShownLogprobs:
    """The entries of `logprobs` of one choice.

    Tokens whose text is shown have an entry. Tokens of a stop string, and the token of the end, have none.
    """

    def __init__(self, tokenizer: Tokenizer, shown_specials: frozenset[int], wants_top: bool) -> None:
        self._tokenizer = tokenizer
        self._shown_specials = shown_specials
        self._wants_top = wants_top
        self._held: list[tuple[int, TokenEvent]] = []  # with the place in the text where the token begins
        self._num_seen = 0  # characters of all tokens
        self._num_released = 0

    def push(self, events: Sequence[TokenEvent]) -> list[TokenLogprob]:
        """Return the entries of the tokens whose text these events release, in order."""
        result = None
        for event in events:
            self._held.append((self._num_seen, event))
            if not event.is_special or event.id in self._shown_specials:
                self._num_seen += len(event.text)
            self._num_released += len(event.released_text)
            result = event.result
        if result is not None:
            return self._finish(result.finish_reason)
        free = []
        while self._held and self._end_of(0) <= self._num_released:
            free.append(self._entry(self._held.pop(0)[1]))
        return free

    def _finish(self, reason: FinishReason) -> list[TokenLogprob]:
        if reason in (FinishReason.EOS, FinishReason.STOP_ID):
            self._held.pop()
        held, self._held = self._held, []
        if reason is FinishReason.STOP_STRING:
            held = [(start, event) for start, event in held if start < self._num_released]
        return [self._entry(event) for _, event in held]

    def _end_of(self, index: int) -> int:
        return self._held[index + 1][0] if index + 1 < len(self._held) else self._num_seen

    def _entry(self, event: TokenEvent) -> TokenLogprob:
        top: Any = []
        if self._wants_top:
            top = [
                TopLogprob(token.text, finite_logprob(token.logprob), self._bytes(token.id))
                for token in event.top_tokens
            ]
        return TokenLogprob(
            self._tokenizer.id_to_text(event.id), finite_logprob(event.logprob), self._bytes(event.id), top
        )

    def _bytes(self, token_id: int) -> list[int]:
        return list(self._tokenizer.id_to_bytes(token_id))


class ChatChunks:
    """Writes the chunks of one choice. Only what changes is encoded per token.

    The first chunk has the role and no text, and the last chunk has the finish reason alone, as at OpenAI. `tail`
    says which `usage` the chunks have.
    """

    def __init__(
        self,
        envelope: Envelope,
        index: int,
        reader: TextReader,
        logprobs: ShownLogprobs | None,
        *,
        tail: ChunkTail = NO_USAGE,
        extras: ChunkExtras | None = None,
        prompt_ids: Sequence[int] | None = None,
        has_functions: bool = False,
    ) -> None:
        self._head = (
            f'data: {{"id":{_quote(envelope.id)},"object":"chat.completion.chunk","created":{envelope.created},'
            f'"model":{_quote(envelope.model)},"system_fingerprint":{_quote(envelope.system_fingerprint)},'
            f'"choices":[{{"index":{index},"delta":'
        )
        self._reader = reader
        self._logprobs = logprobs
        self._tail_of = tail.after
        self._last_tail_of = tail.last
        self._tail = ""
        self._extras = extras
        self._prompt_ids = prompt_ids  # shown by the first chunk
        self._is_first = True
        self._has_tool_calls = False
        self._has_functions = has_functions  # calls are written as `function_call`, the deprecated form

    def encode(self, events: list[TokenEvent]) -> bytes:
        """Return the chunks of these events, possibly none. The last event has one more chunk for the finish reason."""
        text = "".join([event.released_text for event in events])
        deltas = self._reader.push(text) if text else []
        result = events[-1].result
        if result is not None:
            deltas = [*deltas, *self._reader.finish(was_cut(result))]
        entries = [] if self._logprobs is None else self._logprobs.push(events)
        if self._extras is not None:
            self._extras.add(event.id for event in events)
        if not deltas and not entries and result is None:
            return b""
        self._tail = self._tail_of(events[-1].index)
        bodies = [self._delta(delta) for delta in merge(deltas)]
        if entries and not bodies:
            bodies.append('{"content":""}')
        chunks = [self._chunk(body) for body in bodies]
        if entries or (self._extras is not None and bodies):
            chunks[-1] = self._chunk(bodies[-1], entries, extras=self._take_extras())
        if self._is_first:
            self._is_first = False
            chunks.insert(0, self._first_chunk(deltas))
        if result is not None:
            reason = f'"{self._finish_reason(result)}"'
            self._tail = self._last_tail_of(events[-1].index, result)
            chunks.append(self._chunk("{}", reason=reason, extras=self._take_extras(result)))
        return "".join(chunks).encode("utf-8", "replace")

    def _first_chunk(self, deltas: Sequence[Delta]) -> str:
        content = "null" if deltas and isinstance(deltas[0], ToolCallStart) else '""'
        tail = self._tail
        if self._prompt_ids is not None:
            self._tail = f',"prompt_token_ids":{msgspec.json.encode(list(self._prompt_ids)).decode()}{tail}'
        chunk = self._chunk(f'{{"role":"assistant","content":{content}}}')
        self._tail = tail
        return chunk

    def _take_extras(self, result: GenerationResult | None = None) -> str:
        return "" if self._extras is None else self._extras.take(result)

    def _chunk(self, delta: str, entries: Sequence[TokenLogprob] = (), reason: str = "null", extras: str = "") -> str:
        logprobs = "null"
        if entries:
            logprobs = f'{{"content":{msgspec.json.encode(entries).decode()},"refusal":null}}'
        return f'{self._head}{delta},"logprobs":{logprobs},"finish_reason":{reason}{extras}}}]{self._tail}'

    def _delta(self, delta: Delta) -> str:
        match delta:
            case ContentText(text):
                return f'{{"content":{_quote(text)}}}'
            case ReasoningText(text):
                return f'{{"reasoning_content":{_quote(text)}}}'
            case ToolCallStart(index, call_id, name):
                self._has_tool_calls = True
                if self._has_functions:
                    return f'{{"function_call":{{"name":{_quote(name)},"arguments":""}}}}'
                return (
                    f'{{"tool_calls":[{{"index":{index},"id":{_quote(call_id)},"type":"function",'
                    f'"function":{{"name":{_quote(name)},"arguments":""}}}}]}}'
                )
            case ToolArguments(index, text):
                if self._has_functions:
                    return f'{{"function_call":{{"arguments":{_quote(text)}}}}}'
                return f'{{"tool_calls":[{{"index":{index},"function":{{"arguments":{_quote(text)}}}}}]}}'

    def _finish_reason(self, result: GenerationResult) -> str:
        reason = finish_reason(
            result, has_tool_calls=self._has_tool_calls, has_unfinished_call=self._reader.has_unfinished_call
        )
        return _FUNCTION_CALL if self._has_functions and reason == "tool_calls" else reason


def usage_chunk(envelope: Envelope, usage: Usage, timings: Timings | None = None) -> bytes:
    """Return the chunk that ends a stream with `include_usage`."""
    chunk = {**_envelope(envelope, "chat.completion.chunk"), "choices": [], "usage": usage}
    if timings is not None:
        chunk["timings"] = timings
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


@dataclass(frozen=True, slots=True)
class Choice:
    """One complete choice.

    `logprobs` is None unless the call asked for them. `has_unfinished_call` says that a tool call of the
    choice is not whole, and `has_functions` that the choice shows its call as `function_call`, the deprecated form.
    """

    message: ParsedMessage
    has_unfinished_call: bool
    logprobs: list[TokenLogprob] | None
    result: GenerationResult
    has_functions: bool = False
    has_token_ids: bool = False
    has_stop_reason: bool = False


def whole_answer(
    envelope: Envelope,
    choices: Sequence[Choice],
    usage: Usage,
    prompt_ids: Sequence[int] | None = None,
    *,
    timings: Timings | None = None,
    prompt_logprobs: PromptLogprobs | None = None,
) -> bytes:
    """Return the answer that is not streamed. The last three arguments are shown unless they are None."""
    shown = [
        {
            "index": index,
            "message": _message(choice.message, has_functions=choice.has_functions),
            "logprobs": None if choice.logprobs is None else {"content": choice.logprobs, "refusal": None},
            "finish_reason": _choice_reason(choice),
            **shown_extras(choice.result, has_ids=choice.has_token_ids, has_stop_reason=choice.has_stop_reason),
        }
        for index, choice in enumerate(choices)
    ]
    answer = {**_envelope(envelope, "chat.completion"), "choices": shown, "usage": usage}
    if prompt_ids is not None:
        answer["prompt_token_ids"] = list(prompt_ids)
    if timings is not None:
        answer["timings"] = timings
    if prompt_logprobs is not None:
        answer["prompt_logprobs"] = prompt_logprobs
    return msgspec.json.encode(answer)


def _choice_reason(choice: Choice) -> str:
    has_tool_calls = bool(choice.message.tool_calls)
    reason = finish_reason(choice.result, has_tool_calls=has_tool_calls, has_unfinished_call=choice.has_unfinished_call)
    return _FUNCTION_CALL if choice.has_functions and reason == "tool_calls" else reason


def finish_reason(result: GenerationResult, *, has_tool_calls: bool, has_unfinished_call: bool) -> str:
    """Return `tool_calls` where the answer has calls to make, and the reason of the result otherwise.

    Where a call is not whole there is nothing to make: the limit gives `length`, and a stop string or the model gives
    `stop`.
    """
    reason = FINISH_REASONS[result.finish_reason]
    return "tool_calls" if has_tool_calls and reason == "stop" and not has_unfinished_call else reason


def _envelope(envelope: Envelope, kind: str) -> dict[str, Any]:
    return {
        "id": envelope.id,
        "object": kind,
        "created": envelope.created,
        "model": envelope.model,
        "system_fingerprint": envelope.system_fingerprint,
    }


def _message(message: ParsedMessage, *, has_functions: bool) -> dict[str, Any]:
    content = message.content
    if content is None and not message.tool_calls:
        content = ""
    shown: dict[str, Any] = {"role": "assistant", "content": content}
    if message.reasoning_content is not None:
        shown["reasoning_content"] = message.reasoning_content
    if message.tool_calls and has_functions:
        [call, *_] = message.tool_calls
        shown["function_call"] = {"name": call.name, "arguments": call.arguments}
    elif message.tool_calls:
        shown["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return shown
