"""What a chat template is shown of the messages of a body."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from textmill_router.api.openai.chat import render
from textmill_router.api.openai.chat_messages import chat_request
from textmill_router.api.openai.chat_tools import ToolChoice
from textmill_router.api.openai.chat_types import ChatBody
from textmill_router.chat.prompt import ChatRequest
from textmill_router.chat.role_safety import RoleSafety
from textmill_router.chat.template import ChatTemplates


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


@pytest.mark.parametrize("is_long", [False, True])
def test_many_tools_are_rendered_off_the_event_loop(is_long: bool) -> None:
    threads: set[threading.Thread] = set()

    class Watched(RoleSafety):
        def guard(self, value: Any, *, keeps_markup: bool = False) -> Any:
            threads.add(threading.current_thread())
            return super().guard(value, keeps_markup=keeps_markup)

    templates = ChatTemplates({"default": "{{ messages[0].content }}{{ tools | tojson }}"}, {})
    backend: Any = SimpleNamespace(chat_templates=templates, role_safety=Watched([]))
    tool = {"type": "function", "function": {"name": "look", "description": "x" * 200}}
    chat = ChatRequest(messages=[{"role": "user", "content": "hi"}])
    tools = ToolChoice(shown=[tool] * (50 if is_long else 2), specs=())
    asyncio.run(render(backend, chat, tools))
    assert (threads == {threading.current_thread()}) == (not is_long)
