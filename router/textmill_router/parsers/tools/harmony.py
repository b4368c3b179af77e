"""gpt-oss: messages in channels, which set reasoning, text and calls apart.

<|channel|>analysis<|message|>THOUGHT<|end|><|start|>assistant<|channel|>final<|message|>TEXT<|return|>
<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>

The published description is OpenAI's "harmony response format". The recipient of a call may also stand before the
channel. A text in the channel `commentary` that has no recipient is for the reader.
"""

import re
from collections.abc import Sequence
from enum import Enum

from textmill_router.parsers.answer_writer import SPACES, AnswerWriter
from textmill_router.parsers.deltas import Delta
from textmill_router.parsers.marks import MarkFinder, ObjectArguments
from textmill_router.parsers.tools.tool_format import NewId, ToolFormat, ToolSpec

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)
ASSISTANT, FUNCTIONS = "assistant", "functions."
_ENDS = (END, CALL, RETURN)
_MAX_HEADER_CHARACTERS = 400
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*([^\s<]*)")
_TO = "to="


class _State(Enum):
    OPEN_HEADER = 0  # the prompt has begun the message; a text without a channel is content
    HEADER = 1  # behind a mark that begins a message
    REASONING = 2
    CONTENT = 3
    CALL_START = 4  # in a call, before its object
    ARGUMENTS = 5
    BETWEEN = 6  # behind the end of a message


class HarmonyReader:
    """Parts reasoning, text and calls. The texts of several messages of one kind are joined by line ends.

    `tools` None: no calls are looked for. `begun` is the message that the prompt has begun: its text behind the last
    mark of a start.
    """

    def __init__(self, tools: Sequence[ToolSpec] | None, new_id: NewId, begun: str = ASSISTANT) -> None:
        self._known_names = None if tools is None else frozenset(tool.name for tool in tools)
        self._writer = AnswerWriter(new_id)
        self._marks = MarkFinder(MARKS, self._take_text, self._take_mark)
        self._state = _State.OPEN_HEADER
        self._header = ""  # up to here; marks are a part of it
        self._name = ""  # of the call that is read
        self._has_text: set[_State] = set()  # kinds of which a message has ended
        self._arguments = ObjectArguments(self._writer)
        if begun != ASSISTANT:
            self._state = _State.HEADER
            self.push(begun)
            self._has_text.clear()
            self._writer = AnswerWriter(new_id)
            if self._state in (_State.CALL_START, _State.ARGUMENTS):
                self._state = _State.CONTENT  # a call that the client began is no call of the model

    def push(self, text: str) -> list[Delta]:
        """Take more text, and return the deltas that the text sets free."""
        position = 0
        while position < len(text):
            if self._state is _State.ARGUMENTS and not self._marks.begun:
                position = self._marks.read_object(text, position, self._arguments)
                if self._arguments.is_done:
                    self._state = _State.BETWEEN
            else:
                position = self._marks.read(text, position)
        return self._writer.take()

    def finish(self, was_cut: bool) -> list[Delta]:
        """Return the deltas held back. A cut answer loses a mark or a header that has only begun."""
        mark = self._marks.begun
        if not was_cut:
            if self._state is _State.CALL_START and not mark:
                self._end_message()
            elif self._state in (_State.OPEN_HEADER, _State.HEADER):
                self._writer.add_text(self._header + mark)
                self._writer.release()
            else:
                self._marks.give(mark)
            self._writer.close_call()
        if self._state in (_State.CONTENT, _State.BETWEEN) and not self._writer.num_calls:
            self._writer.release()
        return self._writer.take()

    @property
    def first_unfinished_call(self) -> int | None:
        """The index of the first call that has begun and whose arguments are no whole JSON object."""
        return self._writer.first_unfinished_call

    @property
    def num_steps(self) -> int:
        """The number of looks at a character."""
        return self._marks.num_steps

    @property
    def is_in_reasoning(self) -> bool:
        """Whether a message of reasoning has begun and not ended."""
        return self._state is _State.REASONING

    @property
    def is_in_text(self) -> bool:
        """Whether a message for the reader has begun and not ended."""
        return self._state is _State.CONTENT

    @property
    def is_between(self) -> bool:
        """Whether a message has ended and none has begun."""
        return self._state is _State.BETWEEN

    # ---- marks and what stands between them

    def _take_mark(self, mark: str) -> None:
        is_header = self._state in (_State.OPEN_HEADER, _State.HEADER)
        if mark in _ENDS:
            self._end_message()
        elif mark == START:
            self._end_message()
            self._state = _State.HEADER
        elif mark == MESSAGE and is_header:
            self._begin_body()
        elif mark == CHANNEL or is_header:
            if not is_header:
                self._end_message()
            self._state = _State.HEADER
            self._header += mark
        else:
            self._marks.give(mark)

    def _take_text(self, text: str) -> int:
        """How many characters of this text the state takes; at least one, or the state changes."""
        match self._state:
            case _State.REASONING:
                self._writer.add_reasoning(text)
            case _State.CONTENT:
                self._writer.add_text(text)
            case _State.CALL_START:
                return self._begin_arguments(text)
            case _State.ARGUMENTS:
                self._writer.add_arguments(text)
            case _State.BETWEEN:
                body = text.lstrip(SPACES)
                if body:
                    self._begin_text(_State.CONTENT)
                    self._writer.add_text(body)
            case _:
                return self._take_header(text)
        return len(text)

    def _take_header(self, text: str) -> int:
        for taken, char in enumerate(text):
            self._header += char
            is_no_header = len(self._header) > _MAX_HEADER_CHARACTERS or (
                self._state is _State.OPEN_HEADER and not _may_begin_header(self._header)
            )
            if is_no_header:
                header, self._header = self._header, ""
                self._begin_text(_State.CONTENT)
                self._writer.add_text(header)
                return taken + 1
        return len(text)

    # ---- messages

    def _begin_body(self) -> None:
        header, self._header = self._header, ""
        channel = found[1] if (found := _CHANNEL_NAME.search(header)) else ""
        recipient = found[1] if (found := _RECIPIENT.search(header)) else ""
        name = recipient.removeprefix(FUNCTIONS)
        if self._known_names is not None and name and (name != recipient or name in self._known_names):
            self._name = name
            self._state = _State.CALL_START
        else:
            self._begin_text(_State.REASONING if channel == "analysis" else _State.CONTENT)

    def _begin_text(self, kind: _State) -> None:
        self._state = kind
        if kind in self._has_text:
            if kind is _State.REASONING:
                self._writer.add_reasoning("\n")
            else:
                self._writer.add_text("\n")

    def _end_message(self) -> None:
        if self._state is _State.CALL_START:
            self._writer.start_call(self._name)
            self._writer.add_arguments("{}")
        elif self._state in (_State.REASONING, _State.CONTENT):
            self._has_text.add(self._state)
        self._writer.close_call()
        self._header = ""
        self._state = _State.BETWEEN

    def _begin_arguments(self, text: str) -> int:
        body = text.lstrip(SPACES)
        if not body:
            return len(text)
        if body.startswith("{"):
            self._writer.start_call(self._name)
            self._arguments = ObjectArguments(self._writer)
            self._state = _State.ARGUMENTS
        else:
            self._begin_text(_State.CONTENT)  # no object, so no call
        return len(text) - len(body)


def _may_begin_header(text: str) -> bool:
    """Whether a message that has no channel yet may begin so: with spaces and a recipient."""
    text = text.lstrip(" ")
    return _TO.startswith(text) or text.startswith(_TO)


def begun_message(prompt: str) -> str:
    """The message that a prompt has begun, behind the last mark of a start; `assistant` alone where it has none."""
    found = prompt.rfind(START)
    return ASSISTANT if found < 0 else prompt[found + len(START) :]


HARMONY = ToolFormat(
    name="harmony",
    aliases=("openai", "gpt-oss"),
    markers=MARKS,
    is_taught_by=lambda template: CHANNEL in template and MESSAGE in template,
    new_reader=HarmonyReader,
    shape=None,
)
