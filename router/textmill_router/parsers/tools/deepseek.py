"""DeepSeek V3, R1 and V3.1: a name and a JSON object for each call, between tags of the vocabulary.

V3.1: <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
V3 and R1 write `function<｜tool▁sep｜>NAME`, and the object in a fence: a line "```json" before it, and "```" behind.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import Any

from textmill_router.errors import ValidationFailed
from textmill_router.parsers.answer_writer import SPACES, AnswerWriter
from textmill_router.parsers.deltas import Delta
from textmill_router.parsers.json_value import ValueScanner
from textmill_router.parsers.tools.call_shape import CallShape, InOrder, JsonValue, Marker, Text, WrittenCall
from textmill_router.parsers.tools.tool_format import NewId, ToolFormat, ToolSpec

_OPENING, _CLOSING = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEPARATOR, _END_OF_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_TAGS = (_OPENING, _CALL, _SEPARATOR, _END_OF_CALL, _CLOSING)
_FENCE, _END_OF_FENCE = "\n```json\n", "\n```"
_BEHIND_ARGUMENTS = f"{SPACES}`}}"
_MAX_HEADER_CHARACTERS = 400
_FENCED_HEADER = re.compile(rf"\s*function{_SEPARATOR}\s*([^\s`<][^\n`<]*?)\s*(```(json)?\s*)?")
_HEADER = re.compile(rf"\s*([^\s<][^\n<]*?)\s*{_SEPARATOR}\s*(```(json)?\s*)?")


class _State(Enum):
    TEXT = 0
    SECTION = 1  # between the tags around all calls, and in no call
    HEADER = 2  # from the tag of a call to its object
    ARGUMENTS = 3
    AFTER_ARGUMENTS = 4


class DeepSeekReader:
    """Parts text from calls. A call between its tags may have any name, and needs no tags around all calls."""

    def __init__(self, tools: Sequence[ToolSpec], new_id: NewId) -> None:
        self._writer = AnswerWriter(new_id)
        self._state = _State.TEXT
        self._mark = ""  # the characters so far of a tag that has begun
        self._header = ""
        self._scanner = ValueScanner()
        self.num_steps = 0  # the number of looks at a character

    def push(self, text: str) -> list[Delta]:
        """Take more text, and return the deltas that the text sets free."""
        position = 0
        while position < len(text):
            if self._mark:
                position = self._read_tag(text, position)
            elif self._state is _State.ARGUMENTS:
                position = self._read_arguments(text, position)
            else:
                position = self._read_text(text, position)
        return self._writer.take()

    def finish(self, was_cut: bool) -> list[Delta]:
        """Return the deltas held back. A cut answer loses a tag or a call that has only begun."""
        if not was_cut:
            self._give(self._mark)
            if self._state is _State.HEADER or (self._state is _State.SECTION and not self._writer.num_calls):
                self._writer.release()
        if self._state is _State.TEXT and not self._writer.num_calls:
            self._writer.release()
        self._mark = ""
        return self._writer.take()

    @property
    def is_in_call(self) -> bool:
        """Whether a call has begun and its arguments have not ended."""
        return self._state is _State.ARGUMENTS

    # ---- tags and what stands between them

    def _read_text(self, text: str, position: int) -> int:
        found = text.find("<", position)
        end = len(text) if found < 0 else found
        self.num_steps += end - position + 1
        if end > position:
            return position + self._take_text(text[position:end])
        self._mark = "<"
        return end + 1

    def _read_tag(self, text: str, position: int) -> int:
        self.num_steps += 1
        mark = self._mark + text[position]
        if not any(tag.startswith(mark) for tag in _TAGS):
            held, self._mark = self._mark, ""
            self._give(held)
            return position  # the character may begin another tag
        self._mark = mark
        if mark in _TAGS:
            self._mark = ""
            self._take_tag(mark)
        return position + 1

    def _take_tag(self, tag: str) -> None:
        is_header = self._state is _State.HEADER
        if is_header and tag == _SEPARATOR and _SEPARATOR not in self._header:
            self._header += tag
            self._writer.hold(tag)
            return
        if is_header and tag == _END_OF_CALL and self._begin_call():
            self._writer.add_arguments("{}")
            self._state = _State.SECTION
            return
        if is_header:
            self._give_up()
        if tag == _CALL:
            self._writer.hold(tag)
            self._header = ""
            self._state = _State.HEADER
        elif tag == _OPENING:
            if self._state is not _State.TEXT:
                self._give_up()
            self._writer.hold(tag)
            self._state = _State.SECTION
        elif self._state is _State.TEXT or tag == _SEPARATOR:
            self._give_up()
            self._writer.hold(tag)
            self._writer.release()  # the tag closes nothing
        elif tag == _END_OF_CALL:
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
        brace = text.find("{") if _SEPARATOR in self._header else -1
        part = text if brace < 0 else text[:brace]
        self._header += part
        self._writer.hold(part)
        if len(self._header) > _MAX_HEADER_CHARACTERS or (brace >= 0 and not self._begin_call()):
            self._give_up()
        return len(part)

    def _give(self, text: str) -> None:
        while text:
            text = text[self._take_text(text) :]

    # ---- calls

    def _begin_call(self) -> bool:
        """Begin the call of the header; False where the header is none."""
        found = _FENCED_HEADER.fullmatch(self._header) or _HEADER.fullmatch(self._header)
        if found is None:
            return False
        self._writer.start_call(found[1])
        self._scanner = ValueScanner(stops_at_tag=True)
        self._state = _State.ARGUMENTS
        return True

    def _read_arguments(self, text: str, position: int) -> int:
        end = self._scanner.scan(text, position)
        self.num_steps += end - position + 1
        if end > position:
            self._writer.add_arguments(text[position:end])
        if self._scanner.is_done:
            self._state = _State.AFTER_ARGUMENTS
        elif end < len(text):
            self._mark = "<"
            return end + 1
        return end

    def _end_section(self) -> None:
        if self._state is _State.SECTION and not self._writer.num_calls:
            self._writer.hold(_CLOSING)
            self._writer.release()
        self._writer.drop()
        self._state = _State.TEXT

    def _give_up(self) -> None:
        """Give on as text the characters that were held back."""
        self._writer.release()
        self._state = _State.TEXT


# ---- for grammars


def _writer(*, is_fenced: bool) -> Callable[[str, Mapping[str, Any]], WrittenCall]:
    def write(name: str, schema: Mapping[str, Any]) -> WrittenCall:
        if re.search(r"[\n<`{]|^\s|\s$|^$", name) or len(name) > _MAX_HEADER_CHARACTERS // 2:
            raise ValidationFailed(
                f"the tool `{name}` cannot be enforced in this model's format: its name holds a sign that ends a name",
                field="tools",
            )
        if is_fenced:
            begin, end = (Text("function"), Marker(_SEPARATOR), Text(name + _FENCE)), Text(_END_OF_FENCE)
            return WrittenCall("", InOrder((Marker(_CALL), *begin, JsonValue(schema), end, Marker(_END_OF_CALL))), name)
        pieces = (Marker(_CALL), Text(name), Marker(_SEPARATOR), JsonValue(schema), Marker(_END_OF_CALL))
        return WrittenCall("", InOrder(pieces), name)

    return write


def _shape(*, is_fenced: bool) -> Callable[[Collection[str]], CallShape]:
    shape = CallShape(
        _writer(is_fenced=is_fenced),
        opening=_OPENING,
        closing=_CLOSING,
        between="\n" if is_fenced else "",
        is_list=True,
        any_call="\\x{3c}" + _CALL[1:],  # a reader takes a call without the tags around all calls too
    )
    return lambda tokens: shape


DEEPSEEK_V3 = ToolFormat(
    name="deepseek_v3",
    aliases=("deepseekv3",),
    markers=_TAGS,
    is_taught_by=lambda template: _SEPARATOR in template and "```json" in template,
    new_reader=DeepSeekReader,
    shape=_shape(is_fenced=True),
)
DEEPSEEK_V31 = ToolFormat(
    name="deepseek_v31",
    aliases=("deepseekv31",),
    markers=_TAGS,
    is_taught_by=lambda template: _SEPARATOR in template,
    new_reader=DeepSeekReader,
    shape=_shape(is_fenced=False),
)
