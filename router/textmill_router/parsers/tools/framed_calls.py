"""Reads and writes calls that stand between tags of the vocabulary: a header with the name, then a JSON object."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from textmill_router.errors import ValidationFailed
from textmill_router.parsers.answer_writer import SPACES, AnswerWriter
from textmill_router.parsers.deltas import Delta
from textmill_router.parsers.marks import MarkFinder, ObjectArguments
from textmill_router.parsers.tools.tool_format import NewId, ToolReader, ToolSpec

MAX_HEADER_CHARACTERS = 400
_ENDS_NAME = re.compile(r"[\n<`{]|^\s|\s$|^$")
_BEHIND_ARGUMENTS = f"{SPACES}`}}"


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a call says. `written_id` is empty where the format writes no id."""

    name: str
    written_id: str = ""


@dataclass(frozen=True, slots=True)
class FrameRules:
    """The tags of a format: OPENING (CALL header SEPARATOR header {...} END_OF_CALL)* CLOSING.

    `read_header` gets the text between the tag of a call and its object, with the separator, and returns None where
    the text is no header.
    """

    opening: str
    call: str
    separator: str
    end_of_call: str
    closing: str
    read_header: Callable[[str], Header | None]

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.opening, self.call, self.separator, self.end_of_call, self.closing)


def framed_reader(rules: FrameRules) -> Callable[[Sequence[ToolSpec], NewId], ToolReader]:
    """Return the factory of readers for a format of these rules."""
    return lambda tools, new_id: FramedReader(rules, new_id)


def check_name(name: str) -> None:
    """Raise ValidationFailed for the name of a tool that a header cannot hold."""
    if _ENDS_NAME.search(name) or len(name) > MAX_HEADER_CHARACTERS // 2:
        raise ValidationFailed(
            f"the tool `{name}` cannot be enforced in this model's format: its name holds a sign that ends a name",
            field="tools",
        )


class _State(Enum):
    TEXT = 0
    SECTION = 1  # between the tags around all calls, and in no call
    HEADER = 2  # from the tag of a call to its object
    ARGUMENTS = 3
    AFTER_ARGUMENTS = 4


class FramedReader:
    """Parts text from calls. A call between its tags may have any name, and needs no tags around all calls."""

    def __init__(self, rules: FrameRules, new_id: NewId) -> None:
        self._rules = rules
        self._writer = AnswerWriter(new_id)
        self._marks = MarkFinder(rules.tags, self._take_text, self._take_tag)
        self._state = _State.TEXT
        self._header = ""
        self._arguments = ObjectArguments(self._writer)

    def push(self, text: str) -> list[Delta]:
        """Take more text, and return the deltas that the text sets free."""
        position = 0
        while position < len(text):
            if self._state is _State.ARGUMENTS and not self._marks.begun:
                position = self._marks.read_object(text, position, self._arguments)
                if self._arguments.is_done:
                    self._state = _State.AFTER_ARGUMENTS
            else:
                position = self._marks.read(text, position)
        return self._writer.take()

    def finish(self, was_cut: bool) -> list[Delta]:
        """Return the deltas held back. A cut answer loses a tag or a call that has only begun."""
        if not was_cut:
            self._marks.give(self._marks.begun)
            self._writer.close_call()
            if self._state is _State.HEADER or (self._state is _State.SECTION and not self._writer.num_calls):
                self._writer.release()
        if self._state is _State.TEXT and not self._writer.num_calls:
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

    # ---- tags and what stands between them

    def _take_tag(self, tag: str) -> None:
        rules = self._rules
        is_header = self._state is _State.HEADER
        self._writer.close_call()
        if is_header and tag == rules.separator and rules.separator not in self._header:
            self._header += tag
            self._writer.hold(tag)
            return
        if is_header and tag == rules.end_of_call and self._begin_call():
            self._writer.add_arguments("{}")
            self._writer.close_call()
            self._state = _State.SECTION
            return
        if is_header:
            self._give_up()
        if tag == rules.call:
            self._writer.hold(tag)
            self._header = ""
            self._state = _State.HEADER
        elif tag == rules.opening:
            if self._state is not _State.TEXT:
                self._give_up()
            self._writer.hold(tag)
            self._state = _State.SECTION
        elif self._state is _State.TEXT or tag == rules.separator:
            self._give_up()
            self._writer.hold(tag)
            self._writer.release()  # the tag closes nothing
        elif tag == rules.end_of_call:
            self._state = _State.SECTION
        else:
            self._end_section()

    def _take_text(self, text: str) -> int:
        """How many characters of this text the state takes; with none the state changes."""
        match self._state:
            case _State.TEXT:
                self._writer.add_text(text)
            case _State.ARGUMENTS:
                self._writer.add_arguments(text)
            case _State.HEADER:
                return self._take_header(text)
            case _:
                # Behind an object a fence and a bracket too many are dropped; spaces count only if text follows.
                skipped = SPACES if self._state is _State.SECTION else _BEHIND_ARGUMENTS
                num_skipped = len(text) - len(text.lstrip(skipped))
                self._writer.hold("".join(char for char in text[:num_skipped] if char in SPACES))
                if not num_skipped:
                    self._give_up()
                return num_skipped
        return len(text)

    def _take_header(self, text: str) -> int:
        brace = text.find("{") if self._rules.separator in self._header else -1
        part = text if brace < 0 else text[:brace]
        self._header += part
        self._writer.hold(part)
        if len(self._header) > MAX_HEADER_CHARACTERS or (brace >= 0 and not self._begin_call()):
            self._give_up()
        return len(part)

    # ---- calls

    def _begin_call(self) -> bool:
        """Begin the call of the header; False where the header is none."""
        found = self._rules.read_header(self._header)
        if found is None:
            return False
        self._writer.start_call(found.name, found.written_id)
        self._arguments = ObjectArguments(self._writer)
        self._state = _State.ARGUMENTS
        return True

    def _end_section(self) -> None:
        if self._state is _State.SECTION and not self._writer.num_calls:
            self._writer.hold(self._rules.closing)
            self._writer.release()
        self._writer.drop()
        self._state = _State.TEXT

    def _give_up(self) -> None:
        """Give on as text the characters that were held back."""
        self._writer.release()
        self._state = _State.TEXT
