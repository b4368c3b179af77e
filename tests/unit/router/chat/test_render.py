"""Short conversations are rendered on the event loop, and long ones in a thread."""

import asyncio
import threading
from typing import Any

import pytest
from textmill_router.chat.prompt import ChatRequest
from textmill_router.chat.render import render
from textmill_router.chat.role_safety import RoleSafety
from textmill_router.chat.template import ChatTemplates
from textmill_router.chat.tools import ToolChoice


@pytest.mark.parametrize("is_long", [False, True])
def test_many_tools_are_rendered_off_the_event_loop(is_long: bool) -> None:
    threads: set[threading.Thread] = set()

    class Watched(RoleSafety):
        def guard(self, value: Any, *, keeps_markup: bool = False) -> Any:
            threads.add(threading.current_thread())
            return super().guard(value, keeps_markup=keeps_markup)

    templates = ChatTemplates({"default": "{{ messages[0].content }}{{ tools | tojson }}"}, {})
    tool = {"type": "function", "function": {"name": "look", "description": "x" * 200}}
    chat = ChatRequest(messages=[{"role": "user", "content": "hi"}])
    tools = ToolChoice(shown=[tool] * (50 if is_long else 2), specs=())
    asyncio.run(render(templates, Watched([]), chat, tools))
    assert (threads == {threading.current_thread()}) == (not is_long)
