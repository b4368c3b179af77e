"""Tries at start whether the calls that a chat template shows are read as these calls by the reader of the format."""

import json
import logging

from textmill_router.chat.answer_form import FormatFlags
from textmill_router.chat.conversation import Conversation, Message
from textmill_router.chat.template import ChatTemplate, ChatTemplates
from textmill_router.errors import TemplateFailed
from textmill_router.parsers.chat_parser import ChatParser
from textmill_router.parsers.deltas import collect
from textmill_router.parsers.formats import TOOL_FORMAT_NAMES, is_known_form, tool_format_of
from textmill_router.parsers.tools.tool_format import ToolSpec

log = logging.getLogger(__name__)

_NAME = "qzcalled"
_ARGUMENTS = {"place": "qzfirst", "count": 3}
_SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}, "count": {"type": "integer"}}}
_TOOL = {"type": "function", "function": {"name": _NAME, "description": "Looks.", "parameters": _SCHEMA}}
# Some templates show a call by its id alone, and some demand ids of nine letters and digits.
_IDS = (f"functions.{_NAME}:0", "abcdef123")
_USER: Message = {"role": "user", "content": "Well."}


def warn_of_unread_calls(templates: ChatTemplates, flags: FormatFlags) -> None:
    """Log a warning for each chat template that takes tools and whose calls no reader knows.

    Where a template shows no calls, the marks of the known formats in its source decide.
    """
    if flags.tool_call_parser is not None:
        return
    for name, template in templates.usable.items():
        if not template.takes_tools:
            continue
        is_read = reads_own_calls(template)
        if is_read is None:
            is_read = is_known_form(template.source)
        if not is_read:
            log.warning(
                "the chat template takes tools, and no known format reads the calls that it teaches; calls may come as "
                "text",
                extra={
                    "template": name,
                    "read_as": tool_format_of(template.source).name,
                    "flag": "--tool-call-parser",
                    "known_formats": ", ".join(TOOL_FORMAT_NAMES),
                },
            )


def reads_own_calls(template: ChatTemplate) -> bool | None:
    """Whether a call that the template shows is read as that call; None where the template shows no call."""
    if not (template.mentions("tool_calls") and template.forms.shows_calls):
        return None
    shown = [text for text in (_shown_call(template, call_id) for call_id in _IDS) if text]
    return any(_is_read(template, text) for text in shown) if shown else None


def _shown_call(template: ChatTemplate, call_id: str) -> str:
    """Return the text that the template writes of a call behind a user's message; empty where the template fails."""
    function = {"name": _NAME, "arguments": dict(_ARGUMENTS)}
    call = {"id": call_id, "type": "function", "function": function}
    messages = [template.forms.fit(message) for message in (_USER, {"role": "assistant", "tool_calls": [call]})]
    try:
        before, whole = (template.render(Conversation(part, tools=[_TOOL])) for part in (messages[:1], messages))
    except TemplateFailed:
        return ""
    size = next(
        (place for place, pair in enumerate(zip(before, whole, strict=False)) if pair[0] != pair[1]), len(before)
    )
    return whole[size:]


def _is_read(template: ChatTemplate, text: str) -> bool:
    parser = ChatParser(tool_format_of(template.source), None, [ToolSpec(_NAME, _SCHEMA)])
    message = collect([*parser.push(text), *parser.finish(was_cut=False)])
    if parser.first_unfinished_call is not None:
        return False
    return [(call.name, json.loads(call.arguments)) for call in message.tool_calls] == [(_NAME, _ARGUMENTS)]
