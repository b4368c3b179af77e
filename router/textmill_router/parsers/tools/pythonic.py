"""Llama 3.2 and Llama 4: a list of Python calls, `[get_weather(city="Oslo"), add(a=1, b=[2, None])]`.

The list may stand between `<|python_start|>` and `<|python_end|>`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from textmill_router.errors import ValidationFailed
from textmill_router.parsers.answer_writer import SPACES, AnswerWriter
from textmill_router.parsers.deltas import Delta
from textmill_router.parsers.tools.call_shape import (
    CallShape,
    InOrder,
    JsonValue,
    Maybe,
    OneOf,
    Piece,
    Repeated,
    Shared,
    Text,
    TextUntil,
    WrittenCall,
)
from textmill_router.parsers.tools.parameters import ALL_TYPES, Parameters
from textmill_router.parsers.tools.python_literal import LiteralReader
from textmill_router.parsers.tools.tool_format import NewId, ToolFormat, ToolSpec

_OPENING, _CLOSING = "<|python_start|>", "<|python_end|>"
_MAX_NAME_CHARACTERS = 256
_STARTS = re.compile(r"[<\[]")
_WS = r"[ \t\r\n]*"
_ANY_CALL = rf"\[{_WS}(NAMES){_WS}\("
_EXAMPLE = re.compile(r"\[\w+\(\w+=")  # of a call, as the published templates show it


class _State(Enum):
    TEXT = 0
    TAG = 1  # in a tag
    HEAD = 2  # after the opening tag
    LIST = 3  # before the name of a call
    NAME = 4
    NAME_END = 5
    FIRST_KEYWORD = 6
    KEYWORD = 7
    EQUALS = 8
    VALUE_START = 9  # the call begins with the first value, or ends without any
    VALUE = 10
    AFTER_VALUE = 11
    NEXT_KEYWORD = 12
    AFTER_CALL = 13
    AFTER_LIST = 14


class PythonicReader:
    """Splits an answer into text and calls. A call between the tags may have any name, any other only that of a tool.

    Arguments are given on as JSON text at the end of their call, because only then it is known that all of them are
    literals. What is no call is text. A call that a limit cuts leaves its arguments unfinished, unless the call stands
    without tags behind other text.
    """

    def __init__(self, tools: Sequence[ToolSpec], new_id: NewId) -> None:
        self._known_names = frozenset(tool.name for tool in tools)
        self._writer = AnswerWriter(new_id)
        self._state = _State.TEXT
        self._mark = ""  # the characters so far of a tag that has begun
        self._word: list[str] = []  # the name or keyword that is read
        self._name = ""  # of the call that may begin
        self._is_tagged = False
        self._has_call = False  # in the list that is read
        self._arguments: list[str] = []  # of the call that is read, from its first value on
        self._value = LiteralReader()
        self.num_steps = 0  # the number of looks at a character
        self._handlers: dict[_State, Callable[[str, int], int]] = {
            _State.TEXT: self._read_text,
            _State.TAG: self._read_tag,
            _State.NAME: self._read_word,
            _State.KEYWORD: self._read_word,
            _State.VALUE: self._read_value,
            _State.AFTER_LIST: self._read_after_list,
        }

    def push(self, text: str) -> list[Delta]:
        """Take more text, and return the deltas that the text sets free."""
        position = 0
        while position < len(text):
            position = self._handlers.get(self._state, self._read_sign)(text, position)
        return self._writer.take()

    def finish(self, was_cut: bool) -> list[Delta]:
        """Return the deltas held back. A cut answer loses a tag, or a call in tags, that has only begun."""
        is_certain = self._is_tagged or self._state is _State.TAG or self._writer.num_calls > 0
        match self._state:
            case _State.TEXT if self._writer.num_calls:
                pass  # spaces behind a call
            case _State.AFTER_CALL | _State.AFTER_LIST:
                pass
            case _ if was_cut and self._arguments and (self._is_tagged or not self._writer.has_text):
                self._writer.start_call(self._name)
                self._writer.add_arguments("".join(self._arguments))
            case _ if not (was_cut and is_certain and self._state is not _State.TEXT):
                self._writer.hold(self._mark)
                self._writer.release()
        return self._writer.take()

    @property
    def first_unfinished_call(self) -> int | None:
        """The index of the first call that has begun and whose arguments are no whole JSON object."""
        return self._writer.first_unfinished_call

    # ---- one method for each state, which takes a character or more, or changes the state

    def _read_text(self, text: str, position: int) -> int:
        found = _STARTS.search(text, position)
        end = found.start() if found else len(text)
        self.num_steps += end - position + 1
        if end > position:
            self._writer.add_text(text[position:end])
        if found is None:
            return end
        self._is_tagged = False
        self._has_call = False
        if found[0] == "<":
            self._mark = "<"
            self._state = _State.TAG
        else:
            self._writer.hold("[")
            self._state = _State.LIST
        return end + 1

    def _read_tag(self, text: str, position: int) -> int:
        self.num_steps += 1
        mark = self._mark + text[position]
        if not (_OPENING.startswith(mark) or _CLOSING.startswith(mark)):
            self._give_up()
            return position
        self._mark = mark
        if mark == _OPENING:
            self._mark = ""
            self._writer.hold(mark)
            self._is_tagged = True
            self._has_call = False
            self._state = _State.HEAD
        elif mark == _CLOSING:
            self._give_up()  # the tag closes nothing
        return position + 1

    def _read_sign(self, text: str, position: int) -> int:
        """Read one sign between the words and values of a call. Spaces may stand before the sign."""
        self.num_steps += 1
        char = text[position]
        if char in SPACES:
            self._writer.hold(char)
            return position + 1
        match self._state, char:
            case _State.HEAD, "[":
                self._writer.hold(char)
                self._state = _State.LIST
            case _State.NAME_END, "(":
                self._writer.hold(char)
                self._arguments = []
                self._state = _State.FIRST_KEYWORD
            case ((_State.FIRST_KEYWORD | _State.AFTER_VALUE | _State.NEXT_KEYWORD), ")"):
                self._end_call()
            case _State.EQUALS, "=":
                self._writer.hold(char)
                self._state = _State.VALUE_START
            case _State.VALUE_START, _ if char in "\"'[{(+" or _is_word(char):
                self._begin_value()
                return position
            case _State.AFTER_VALUE, ",":
                self._writer.hold(char)
                self._state = _State.NEXT_KEYWORD
            case _State.AFTER_CALL, ",":
                self._writer.hold(char)
                self._state = _State.LIST
            case ((_State.AFTER_CALL | _State.LIST), "]") if self._has_call:
                self._writer.drop()
                self._state = _State.AFTER_LIST
            case ((_State.LIST | _State.FIRST_KEYWORD | _State.NEXT_KEYWORD), _) if _is_word(char):
                self._word = []
                self._state = _State.NAME if self._state is _State.LIST else _State.KEYWORD
                return position
            case _:
                self._give_up()
                return position
        return position + 1

    def _read_word(self, text: str, position: int) -> int:
        self.num_steps += 1
        char = text[position]
        if _is_word(char) and len(self._word) < _MAX_NAME_CHARACTERS:
            self._word.append(char)
            self._writer.hold(char)
            return position + 1
        if self._state is _State.KEYWORD:
            self._state = _State.EQUALS
            return position
        self._name = "".join(self._word)
        if self._is_tagged or self._name in self._known_names:
            self._state = _State.NAME_END
        else:
            self._give_up()
        return position

    def _begin_value(self) -> None:
        keyword = json.dumps("".join(self._word), ensure_ascii=False)
        self._arguments.append(f"{', ' if self._arguments else '{'}{keyword}: ")
        self._value = LiteralReader()
        self._state = _State.VALUE

    def _read_value(self, text: str, position: int) -> int:
        value = self._value
        before = value.num_steps
        end = value.read(text, position)
        self.num_steps += value.num_steps - before
        self._writer.hold(text[position:end])
        self._arguments.append(value.take())
        if value.is_broken:
            self._give_up()
        elif value.is_done:
            self._state = _State.AFTER_VALUE
        return end

    def _read_after_list(self, text: str, position: int) -> int:
        self.num_steps += 1
        char = text[position]
        mark = self._mark + char
        if _CLOSING.startswith(mark):
            self._mark = mark
            if mark == _CLOSING:
                self._mark = ""
                self._writer.drop()
                self._state = _State.TEXT
            return position + 1
        if _OPENING.startswith(mark):
            self._state = _State.TAG
            return position
        if not self._mark and char in SPACES:
            self._writer.hold(char)
            return position + 1
        if self._mark:
            self._give_up()
        self._state = _State.TEXT
        return position

    # ---- the call

    def _end_call(self) -> None:
        self._writer.start_call(self._name)
        self._writer.add_arguments("".join([*(self._arguments or "{"), "}"]))
        self._writer.close_call()
        self._arguments = []
        self._has_call = True
        self._state = _State.AFTER_CALL

    def _give_up(self) -> None:
        """Give on the text that was held back, because the next character is no part of a call."""
        self._arguments = []
        self._writer.hold(self._mark)
        self._mark = ""
        if self._state is not _State.AFTER_CALL:
            self._writer.release()
        self._state = _State.TEXT


def _is_word(char: str) -> bool:
    return char.isalnum() or char in "_-."


# ---- for grammars


def _write_call(name: str, schema: Mapping[str, Any]) -> WrittenCall:
    """Write a call with keywords in the order of the schema. Values are JSON, which the reader takes beside Python's.

    Raises ValidationFailed for what has no form here.
    """
    _check_name(name, name)
    parameters = Parameters(schema)
    declared = parameters.declared(name)
    given: list[tuple[Piece, bool]] = []
    for parameter in declared:
        if not _is_name(parameter.name) and not parameter.is_required:
            continue
        _check_name(parameter.name, name)
        value = _written_value(parameter.schema, parameters.types_of(parameter.name))
        given.append((InOrder((Text(f"{parameter.name}="), value)), parameter.is_required))
    arguments = _listed(given)
    if not declared and schema.get("additionalProperties") is not False:
        others = parameters.others if "additionalProperties" in schema else None
        pair = InOrder((TextUntil("=", ("[A-Za-z_][A-Za-z0-9_]{0,63}",)), JsonValue(others or {})))
        arguments = Maybe(InOrder((pair, Repeated(InOrder((Text(", "), pair))))))
    return WrittenCall(f"{name}(", InOrder((arguments, Text(")"))), name)


def _listed(given: Sequence[tuple[Piece, bool]]) -> Piece:
    """Return the arguments with commas between them. The flag of an argument says that the argument must be given."""
    following: Piece = Text("")  # the piece that may come behind an argument
    first: Piece | None = None  # the piece that may come where no argument stands before
    for piece, is_required in reversed(given):
        begun: Piece = InOrder((piece, following))
        if not is_required:
            begun = Maybe(begun) if first is None else OneOf((begun, first))
        first = begun
        with_comma = InOrder((Text(", "), piece))
        following = Shared(InOrder((with_comma if is_required else Maybe(with_comma), following)))
    return first or Text("")


def _written_value(schema: Mapping[str, Any], types: frozenset[str]) -> Piece:
    """Return a value as JSON, but for values that can only be a word, which stand as Python writes the word."""
    value = JsonValue(schema)
    if types == {"null"}:
        return Text("None")
    if types == {"boolean"} and not schema.keys() & {"enum", "const"}:
        return OneOf((Text("True"), Text("False")))
    return OneOf((Text("None"), value)) if "null" in types and types != ALL_TYPES else value


def _is_name(name: str) -> bool:
    return 0 < len(name) <= _MAX_NAME_CHARACTERS and all(map(_is_word, name))


def _check_name(name: str, tool_name: str) -> None:
    if not _is_name(name):
        raise ValidationFailed(
            f"the tool `{tool_name}` cannot be enforced in this model's format: {name!r} is no name of Python",
            field="tools",
        )


_SHAPE = CallShape(_write_call, before="[", after="]", between=", ", is_list=True, any_call=_ANY_CALL)

PYTHONIC = ToolFormat(
    name="pythonic",
    aliases=("llama4_pythonic",),
    markers=(_OPENING, _CLOSING),
    is_taught_by=lambda template: _EXAMPLE.search(template) is not None,
    new_reader=PythonicReader,
    shape=lambda tokens: _SHAPE,
)
