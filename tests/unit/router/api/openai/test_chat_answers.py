"""The chunks of a chat stream: the content of one write, and the tokens that have log-probabilities."""

import json
from typing import Any

import pytest
from textmill_router.api.openai.chat_answers import ChatChunks, ShownLogprobs
from textmill_router.api.openai.types import ChunkTail, Envelope, OpenAIBody, StreamOptions
from textmill_router.chat.answer_form import PlainReader
from textmill_router.parsers.chat_parser import ChatParser
from textmill_router.parsers.formats import ReasoningFormat
from textmill_router.parsers.tools import hermes
from textmill_router.parsers.tools.tool_format import ToolSpec
from textmill_router.request import FinishReason, RequestId
from textmill_router.text.events import GenerationResult, TokenEvent, TopToken
from textmill_router.text.tokenization import Tokenizer

from tests.fakes.byte_tokenizer import END_ID, write_byte_tokenizer

ENVELOPE = Envelope("chatcmpl-1", 1_700_000_000, 'a "model"', "0.1-native")


def result(reason: FinishReason, text: str = "") -> GenerationResult:
    return GenerationResult(text, reason, 1, 1, [], [], 0, 0.0, 0.0, 0.0, RequestId(1))


def event(token_id: int, text: str, released: str | None = None, end: FinishReason | None = None) -> TokenEvent:
    shown = text if released is None else released
    finish = None if end is None else result(end)
    return TokenEvent(1, token_id, text, -0.5, token_id >= 256, (TopToken(1, "x", -0.1, False),), shown, finish)


def chunks(data: bytes) -> list[dict[str, Any]]:
    parts = data.decode().split("\n\n")
    assert parts[-1] == ""
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-1]]


ROLE = {"role": "assistant", "content": ""}  # the first chunk of OpenAI's published stream


def test_events_that_waited_are_one_chunk() -> None:
    """A client that reads slowly gets all text since its last read in one write."""
    writer = ChatChunks(ENVELOPE, 2, PlainReader(), None)
    [first, chunk] = chunks(writer.encode([event(104, "h"), event(105, 'i"\n'), event(106, "\u2028😀")]))
    assert chunk == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": 'a "model"',
        "system_fingerprint": "0.1-native",
        "choices": [
            {
                "index": 2,
                "delta": {"content": 'hi"\n\u2028😀'},
                "logprobs": None,
                "finish_reason": None,
            }
        ],
    }
    assert first == {
        **chunk,
        "choices": [{"index": 2, "delta": ROLE, "logprobs": None, "finish_reason": None}],
    }
    [chunk, last] = chunks(writer.encode([event(97, "a"), event(END_ID, "<|end|>", "", FinishReason.EOS)]))
    assert chunk["choices"][0]["delta"] == {"content": "a"}
    assert chunk["choices"][0]["finish_reason"] is None
    assert last["choices"] == [{"index": 2, "delta": {}, "logprobs": None, "finish_reason": "stop"}]


def test_chunks_have_a_usage_where_the_stream_ends_with_one() -> None:
    tail = ChunkTail(OpenAIBody(stream_options=StreamOptions(include_usage=True)), 1)
    writer = ChatChunks(ENVELOPE, 0, PlainReader(), None, tail=tail)
    found = chunks(writer.encode([event(97, "a", None, FinishReason.LENGTH)]))
    assert [chunk["usage"] for chunk in found] == [None] * 3  # role, text, reason


def test_nothing_is_written_while_nothing_may_be_shown() -> None:
    writer = ChatChunks(ENVELOPE, 0, PlainReader(), None)
    assert writer.encode([event(195, "", "")]) == b""
    found = chunks(writer.encode([event(END_ID, "<|end|>", "", FinishReason.EOS)]))
    assert [chunk["choices"][0]["delta"] for chunk in found] == [ROLE, {}]


def test_each_kind_of_delta_is_a_chunk_and_the_last_has_the_reason() -> None:
    parser = ChatParser(hermes.HERMES, ReasoningFormat.THINK, (ToolSpec("f"),), new_id=lambda name, index: "call_1")
    writer = ChatChunks(ENVELOPE, 0, parser, None)
    text = '<think>hm</think>Well.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    found = chunks(writer.encode([event(97, text, None, FinishReason.EOS)]))
    deltas = [chunk["choices"][0]["delta"] for chunk in found]
    assert deltas == [
        ROLE,
        {"reasoning_content": "hm"},
        {"content": "Well."},
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1}'}}]},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [*[None] * 5, "tool_calls"]


def test_answer_that_is_a_call_has_no_content() -> None:
    parser = ChatParser(hermes.HERMES, None, (ToolSpec("f"),), new_id=lambda name, index: "call_1")
    writer = ChatChunks(ENVELOPE, 0, parser, None)
    found = chunks(writer.encode([event(97, '<tool_call>{"name": "f"}</tool_call>', None, FinishReason.EOS)]))
    first, second, *_ = [chunk["choices"][0]["delta"] for chunk in found]
    assert first == {"role": "assistant", "content": None}
    assert set(second) == {"tool_calls"}


@pytest.mark.parametrize("wants_top", [False, True])
def test_logprobs_wait_for_their_text(tmp_path_factory: pytest.TempPathFactory, wants_top: bool) -> None:
    """Tokens whose text may begin a stop string come later, and tokens of the match never come."""
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    shown = ShownLogprobs(tokenizer, frozenset(), wants_top)

    def tokens(*events: TokenEvent) -> str:
        entries = shown.push(events)
        assert all(bool(entry.top_logprobs) == wants_top for entry in entries)
        return "".join(entry.token for entry in entries)

    assert tokens(event(97, "a")) == "a"
    assert tokens(event(98, "b", "")) == ""  # the text may begin a stop string
    assert tokens(event(99, "c", "bc")) == "bc"
    assert tokens(event(END_ID, "<|end|>", "")) == "<|end|>"  # has no text, so it waits for none
    assert tokens(event(98, "b", "")) == ""
    assert tokens(event(120, "x", "", FinishReason.STOP_STRING)) == ""
    tokenizer.close()
