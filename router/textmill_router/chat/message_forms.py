"""The forms in which a chat template reads messages, and how a message is given the form that the template reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from textmill_router.chat.conversation import Message
from textmill_router.chat.marked_text import with_marks_hidden
from textmill_router.chat.message_content import Content, text_of

# In a call's function: the arguments as the client wrote them, where the client wrote a text. No template sees the key.
SENT_ARGUMENTS = "sent_arguments"


@dataclass(frozen=True, slots=True)
class ContentForm:
    """The forms in which a template reads the content of a role's messages; none where it leaves the content out."""

    takes_text: bool
    takes_parts: bool  # any number of them
    takes_one_part: bool = False  # reads the first part only

    @property
    def is_read(self) -> bool:
        return self.takes_text or self.takes_parts or self.takes_one_part

    def fit(self, content: Content) -> Content:
        """Return the content in a form that is read; parts become one text with nothing between them, as in TGI."""
        if isinstance(content, str):
            return content if self.takes_text or not self.is_read else _one_part(content)
        if self.takes_parts or (self.takes_one_part and len(content) == 1):
            return content
        return text_of(content) if self.takes_text or not self.is_read else _one_part(text_of(content))


class AbsentContent(Enum):
    """The content that a template gets of a message with calls and without content."""

    MISSING = "missing"
    NULL = "null"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class MessageForms:
    """The form that a template reads, for each shape of a message."""

    default: ContentForm  # of roles that are not listed
    contents: Mapping[str, ContentForm] = field(default_factory=dict)  # by role
    has_text_arguments: bool = False  # the arguments of a call are JSON text; else an object
    absent_content: AbsentContent = AbsentContent.MISSING
    shows_calls: bool = True  # else calls of the history are shown as text
    shows_names: bool = True  # of the tools in calls; else a call's id tells the tool
    reasoning_fields: tuple[str, ...] = ("reasoning_content", "thinking")

    def content(self, role: str) -> ContentForm:
        return self.contents.get(role, self.default)

    def fit(self, message: Message) -> Message:
        """Return a message of the dialects in the form that the template reads."""
        fitted = dict(message)
        if message.get("content") is not None:
            fitted["content"] = self.content(message["role"]).fit(message["content"])
        elif "tool_calls" in message and self.absent_content is not AbsentContent.MISSING:
            fitted["content"] = None if self.absent_content is AbsentContent.NULL else ""
        if "tool_calls" in message:
            fitted["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        reasoning = fitted.pop("reasoning_content", None)
        if reasoning is not None:
            fitted |= dict.fromkeys(self.reasoning_fields, reasoning)
        return fitted

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = dict(call["function"])
        sent = function.pop(SENT_ARGUMENTS, None)
        if self.has_text_arguments and not isinstance(function["arguments"], str):
            written = with_marks_hidden(json.dumps(function["arguments"], ensure_ascii=False))
            function["arguments"] = written if sent is None else sent
        return {**call, "function": function}


def _one_part(text: str) -> Content:
    return [{"type": "text", "text": text}]
