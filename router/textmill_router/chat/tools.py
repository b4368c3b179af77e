"""The tools that a call declares: which of them may be called, and how a chat template shows them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from textmill_router.chat.conversation import Message
from textmill_router.chat.message_content import text_of, with_more_text
from textmill_router.chat.prompt import ChatRequest
from textmill_router.chat.template import ChatTemplate
from textmill_router.chat.tool_prompt import tool_words
from textmill_router.parsers.formats import tool_format_of
from textmill_router.parsers.tools.tool_format import NewId, ToolSpec


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """The tools that may be called. There is no ToolChoice where a call chooses `none`."""

    shown: list[dict[str, Any]]  # as templates take them
    specs: tuple[ToolSpec, ...]
    is_narrowed: bool = False  # tools are shown that may not be called
    is_required: bool = False
    is_parallel: bool = True
    prompt: str | None = None  # the `tool_prompt` of the call


def for_template(template: ChatTemplate, chat: ChatRequest, tools: ToolChoice | None) -> ChatRequest:
    """Return the conversation as this template can show it: tools and calls that it does not know become text."""
    if not (template.mentions("tool_calls") and template.forms.shows_calls):
        chat = replace(chat, messages=[_call_as_text(message) for message in chat.messages])
    elif not template.forms.shows_names:
        chat = replace(chat, messages=_with_telling_ids(chat.messages, tool_format_of(template.source).new_id))
    if tools is None:
        return chat
    text = tool_words(tools.shown, tools.prompt, template_takes_tools=template.takes_tools)
    if text:
        chat = _with_last_text(chat, text)
    return replace(chat, tools=tools.shown) if template.takes_tools else chat


def _with_telling_ids(messages: Sequence[Message], new_id: NewId) -> list[Message]:
    """Return the messages with ids that hold the name of the tool, for templates that show a call by its id alone.

    Ids that hold the name already, as the model wrote them, stay; others come from another server or client.
    """
    told: dict[str, str] = {}
    num_calls = 0
    shown = []
    for message in messages:
        if "tool_calls" in message:
            calls = []
            for call in message["tool_calls"]:
                call_id, name = str(call.get("id")), call["function"]["name"]
                if name not in call_id:
                    told[call_id] = new_id(name, num_calls)
                calls.append({**call, "id": told.get(call_id, call_id)})
                num_calls += 1
            message = {**message, "tool_calls": calls}
        elif message.get("tool_call_id") in told:
            message = {**message, "tool_call_id": told[message["tool_call_id"]]}
        shown.append(message)
    return shown


def _call_as_text(message: Message) -> Message:
    """Return the message with its calls as text, in the form in which the tool prompt asks for calls."""
    if "tool_calls" not in message:
        return message
    said = text_of(message.get("content", ""))
    lines = [said] if said else []
    for call in message["tool_calls"]:
        function = call["function"]
        called = {"name": function["name"], "parameters": function["arguments"]}
        lines.append(json.dumps(called, ensure_ascii=False))
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": "\n".join(lines)}


def _with_last_text(chat: ChatRequest, text: str) -> ChatRequest:
    """Return the conversation with the text appended to the last message that is not the assistant's."""
    messages = list(chat.messages) or [{"role": "user", "content": ""}]
    places = [index for index, message in enumerate(messages) if message["role"] != "assistant"]
    index = places[-1] if places else len(messages) - 1
    content = messages[index].get("content", "")
    messages[index] = {**messages[index], "content": with_more_text(content, text)}
    return replace(chat, messages=messages)
