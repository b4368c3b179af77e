"""The form in which a chat template sees tools and calls that it does not know."""

from typing import Any

import pytest
from textmill_router.chat.prompt import ChatRequest
from textmill_router.chat.template import ChatTemplate, ChatTemplates
from textmill_router.chat.tools import ToolChoice, for_template

TOOL = {"type": "function", "function": {"name": "f"}}
TOOLS = ToolChoice(shown=[TOOL], specs=(), prompt="Do it.")
USER: dict[str, Any] = {"role": "user", "content": "hi"}
ASSISTANT: dict[str, Any] = {"role": "assistant", "content": "Sure,"}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "Look:",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}],
}


def template(source: str) -> ChatTemplate:
    return ChatTemplates({"default": source}, {}).pick(has_tools=False)


def test_a_template_that_takes_tools_gets_them_as_they_are() -> None:
    shown = for_template(template("{{ tools }}{{ messages[0].tool_calls }}"), ChatRequest([USER, CALL]), TOOLS)
    assert shown.tools == [TOOL]
    assert shown.messages == [{"role": "user", "content": "hi\n---\nDo it."}, CALL]


@pytest.mark.parametrize(
    ("messages", "place"), [([USER, ASSISTANT], 0), ([USER, ASSISTANT, USER], 2), ([ASSISTANT], 0), ([], 0)]
)
def test_words_stand_behind_the_last_message_that_is_not_the_assistants(
    messages: list[dict[str, Any]], place: int
) -> None:
    shown = for_template(template("x"), ChatRequest(messages), TOOLS)
    assert shown.tools is None
    assert [index for index, one in enumerate(shown.messages) if one["content"].endswith("\nDo it.")] == [place]
    assert '{"name": "f"}' in shown.messages[place]["content"]


def test_a_call_is_text_where_the_template_knows_no_calls() -> None:
    shown = for_template(template("x"), ChatRequest([USER, CALL]), None)
    assert shown.messages == [
        USER,
        {"role": "assistant", "content": 'Look:\n{"name": "f", "parameters": {"a": "é"}}'},
    ]
    assert for_template(template("{{ messages[0].tool_calls }}"), ChatRequest([USER, CALL]), None).messages == [
        USER,
        CALL,
    ]
