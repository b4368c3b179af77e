"""The messages of a body, in the form in which a chat template sees them."""

from typing import Any

import msgspec
import pytest
from textmill_router.api.openai.chat_messages import chat_request
from textmill_router.api.openai.chat_types import ChatBody
from textmill_router.errors import ValidationFailed


def shown_arguments(arguments: str) -> Any:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    body = {"model": "m", "messages": [{"role": "assistant", "tool_calls": [call]}]}
    (message,) = chat_request(msgspec.convert(body, ChatBody)).messages
    return message["tool_calls"][0]["function"]["arguments"]


def test_arguments_of_a_call_become_the_object_that_they_hold() -> None:
    assert shown_arguments('{"city": "Rome", "days": [1, 2]}') == {"city": "Rome", "days": [1, 2]}


@pytest.mark.parametrize(
    "arguments",
    ["not json", "[1]", '{"x": ' + "[" * 500 + "]" * 500 + "}", '{"x": ' + "[" * 100_000],
    ids=lambda a: a[:9],
)
def test_arguments_that_hold_no_object_or_nest_too_deep_stay_text(arguments: str) -> None:
    assert shown_arguments(arguments) == arguments


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({"content": None, "refusal": "I cannot."}, "I cannot."),
        ({"refusal": "I cannot."}, "I cannot."),
        ({"content": "", "refusal": "I cannot."}, "I cannot."),
        ({"content": "Yes.", "refusal": None}, "Yes."),
        ({"content": [{"type": "text", "text": "Yes."}], "refusal": None}, [{"type": "text", "text": "Yes."}]),
        ({"content": None}, ""),
        ({"content": "", "refusal": None}, ""),
    ],
)
def test_refusal_of_an_assistant_is_what_the_assistant_said(fields: dict[str, Any], content: Any) -> None:
    body = {"messages": [{"role": "assistant", **fields}]}
    (message,) = chat_request(msgspec.convert(body, ChatBody)).messages
    assert message["content"] == content


def test_refusal_is_no_text_of_a_user() -> None:
    body = {"messages": [{"role": "user", "refusal": "I cannot."}]}
    with pytest.raises(ValidationFailed, match=r"`messages\[0\].content` is missing"):
        chat_request(msgspec.convert(body, ChatBody))
