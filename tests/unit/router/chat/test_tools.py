"""The form in which a chat template sees tools and calls that it does not know."""

from typing import Any

import pytest
from textmill_router.chat.prompt import ChatRequest
from textmill_router.chat.template import ChatTemplate, ChatTemplates
from textmill_router.chat.tools import ToolChoice, for_template

from tests.fakes.chat_templates import template_source

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


def test_a_template_that_shows_a_call_by_its_id_gets_ids_that_tell_the_tool() -> None:
    """As the templates of Kimi K2 do. A conversation may come from another server, with ids of that server."""

    def called(call_id: str, name: str) -> dict[str, Any]:
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": {}}}

    def result(call_id: str) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": call_id, "content": "ok"}

    messages = [
        USER,
        {"role": "assistant", "tool_calls": [called("call_1", "f"), called("functions.g:7", "g")]},
        result("call_1"),
        result("functions.g:7"),
        {"role": "assistant", "tool_calls": [called("call_2", "f")]},
        result("call_2"),
    ]
    kimi = template(template_source("kimi_k2"))
    shown = for_template(kimi, ChatRequest(messages), None).messages
    ids = [call["id"] for message in shown for call in message.get("tool_calls", [])]
    assert ids == ["functions.f:0", "functions.g:7", "functions.f:2"]
    assert [message["tool_call_id"] for message in shown if message["role"] == "tool"] == ids
    qwen = template(template_source("qwen2_5"))
    assert for_template(qwen, ChatRequest(messages), None).messages == messages
