"""Splits an answer into text and calls in JSON, in one pass, for all formats whose calls are JSON."""

import json
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import Enum
from typing import Any

from textmill_router.parsers.answer_writer import SPACES, AnswerWriter
from textmill_router.parsers.deltas import Delta
from textmill_router.parsers.json_value import ValueScanner
from textmill_router.parsers.tools.call_shape import InOrder, JsonValue, Text, WrittenCall
from textmill_router.parsers.tools.json_call import MAX_NAME_CHARACTERS, CallReader, CallStatus
from textmill_router.parsers.tools.tool_format import NewId, ToolReader, ToolSpec

CALL_ID, ARGS = "[CALL_ID]", "[ARGS]"  # Mistral's tags behind a bare name
_WS = r"[ \t\r\n]*"
# Matches the beginning of a call without a tag; `CallReader` takes no other. NAMES stands for the tools' names.
ANY_JSON_CALL = (
    rf"\{{{_WS}(\x{{22}}name\x{{22}}{_WS}:{_WS}(NAMES)|\x{{22}}(arguments|parameters|function|id|type)\x{{22}}{_WS}:)"
)


@dataclass(frozen=True, slots=True)
class JsonRules:
    """The rules of a format. No tag has its first character twice, so that a broken tag is text up to its break."""

    starts: re.Pattern[str]  # characters in text with which a call may begin
    opening: str = ""  # a tag before calls of any name
    closing: str = ""  # a tag after the calls
    separators: str = ""  # between calls, beside spaces
    has_bare_names: bool = False  # name{...} after the tag
    has_many: bool = False  # several calls between two tags without an array
    is_word: bool = False  # `opening` is a word, which is text unless an array follows the word


def json_reader(rules: JsonRules) -> Callable[[Sequence[ToolSpec], NewId], ToolReader]:
    """Return the factory of readers for a format of these rules."""
    return lambda tools, new_id: JsonToolReader(rules, frozenset(tool.name for tool in tools), new_id)


def json_writer(arguments_key: str) -> Callable[[str, Mapping[str, Any]], WrittenCall]:
    """Return what writes a call for a grammar, with the name first, then the arguments under this key."""

    def write(name: str, schema: Mapping[str, Any]) -> WrittenCall:
        head = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{arguments_key}": '
        whole = {
            "type": "object",
            "properties": {"name": {"const": name}, arguments_key: _moved(schema, f"#/properties/{arguments_key}")},
            "required": ["name", arguments_key],
            "additionalProperties": False,
        }
        return WrittenCall(head, InOrder((JsonValue(schema), Text("}"))), json.dumps(name), whole)

    return write


def _moved(schema: Any, root: str) -> Any:
    """Return the schema with references that hold where the root of the schema has the JSON pointer `root`."""
    if isinstance(schema, list):
        return [_moved(entry, root) for entry in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: root + value[1:]
        if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/"))
        else _moved(value, root)
        for key, value in schema.items()
    }


class _State(Enum):
    TEXT = 0
    OPENING = 1
    HEAD = 2  # after the opening tag or an array's bracket
    CALL = 3
    NAME = 4
    NAME_TAG = 5
    CALL_ID = 6
    NAME_END = 7
    NAMED_ARGUMENTS = 8
    AFTER_CALL = 9
    CLOSING = 10


class JsonToolReader:
    """Turns text into deltas. Text that may become a call is held back until the text is a call or cannot be one.

    A call in an opening tag may have any name, since the client must learn of it; without a tag only the names of the
    request's tools count, or every JSON answer would be suspect. What is no call is text, tags included. Without a tag
    and behind other text an object is held back to its end, because text may quote half a call.
    """

    __slots__ = (
        "_call",
        "_handlers",
        "_is_in_array",
        "_is_tagged",
        "_known_names",
        "_mark",
        "_name",
        "_rules",
        "_scanner",
        "_state",
        "_writer",
        "num_steps",
    )

    def __init__(self, rules: JsonRules, known_names: Set[str], new_id: NewId) -> None:
        self._rules = rules
        self._known_names = known_names
        self._writer = AnswerWriter(new_id)
        self._state = _State.TEXT
        self._mark = ""  # the characters so far of a tag that has begun
        self._name: list[str] = []
        self._is_tagged = False
        self._is_in_array = False
        self._call = CallReader(self._writer, None, "")
        self._scanner = ValueScanner()
        self.num_steps = 0  # the number of looks at a character
        self._handlers: dict[_State, Callable[[str, int], int]] = {
            _State.TEXT: self._read_text,
            _State.OPENING: self._read_opening,
            _State.HEAD: self._read_head,
            _State.CALL: self._read_call,
            _State.NAME: self._read_name,
            _State.NAME_TAG: self._read_name_tag,
            _State.CALL_ID: self._read_call_id,
            _State.NAME_END: self._read_name_end,
            _State.NAMED_ARGUMENTS: self._read_named_arguments,
            _State.AFTER_CALL: self._read_after_call,
            _State.CLOSING: self._read_closing,
        }

    def push(self, text: str) -> list[Delta]:
        """Take more text, and return the deltas that the text sets free."""
        position = 0
        while position < len(text):
            position = self._handlers[self._state](text, position)
        return self._writer.take()

    def finish(self, was_cut: bool) -> list[Delta]:
        """Return the deltas held back. A cut answer loses a tag, or a call in a tag, that has only begun."""
        match self._state:
            case _State.TEXT:
                if not self._writer.num_calls:
                    self._writer.release()
            case _State.CALL if self._call.has_started:
                self._call.finish(was_cut)
            case _State.NAMED_ARGUMENTS if not was_cut:
                self._writer.close_call()
            case _State.NAMED_ARGUMENTS | _State.AFTER_CALL | _State.CLOSING:
                pass
            case _:
                is_tagged = not self._rules.is_word and (self._is_tagged or self._state is _State.OPENING)
                is_tagged = is_tagged or self._writer.num_calls > 0
                if not (was_cut and is_tagged):
                    self._writer.hold(self._mark if self._state is _State.NAME_TAG else "")
                    self._writer.release()
        return self._writer.take()

    @property
    def first_unfinished_call(self) -> int | None:
        """The index of the first call that has begun and whose arguments are no whole JSON object."""
        return self._writer.first_unfinished_call

    # ---- one method for each state, which takes a character or more, or changes the state

    def _read_text(self, text: str, position: int) -> int:
        found = self._rules.starts.search(text, position)
        end = found.start() if found else len(text)
        self.num_steps += end - position + 1
        if end > position:
            self._writer.add_text(text[position:end])
            return end
        char = text[position]
        if self._rules.opening.startswith(char):
            return self._begin_opening(char, position)
        self._is_tagged = False
        if char == "{":
            self._begin_call()
            return position
        self._is_in_array = True
        self._writer.hold(char)
        self._state = _State.HEAD
        return position + 1

    def _begin_opening(self, char: str, position: int) -> int:
        self._writer.hold(char)
        self._mark = char
        self._state = _State.OPENING
        return position + 1

    def _read_opening(self, text: str, position: int) -> int:
        self.num_steps += 1
        rules = self._rules
        mark = self._mark + text[position]
        if not rules.opening.startswith(mark) and not rules.closing.startswith(mark):
            self._give_up()
            return position
        self._mark = mark
        self._writer.hold(text[position])
        if mark == rules.opening:
            self._begin_head()
        elif mark == rules.closing:
            self._give_up()  # the tag closes nothing, and is held back only so that a cut answer has no half of a tag
        return position + 1

    def _begin_head(self) -> None:
        self._is_tagged = True
        self._is_in_array = False
        self._state = _State.HEAD

    def _read_head(self, text: str, position: int) -> int:
        self.num_steps += 1
        char = text[position]
        if self._rules.is_word and not self._is_in_array and char != "[":
            self._give_up()
            return position
        if char == "{":
            self._begin_call()
            return position
        if char == "[" and not self._is_in_array:
            self._is_in_array = True
        elif self._rules.has_bare_names and not self._is_in_array and _is_name_character(char):
            self._name = []
            self._state = _State.NAME
            return position
        elif char not in SPACES:
            self._give_up()
            return position
        self._writer.hold(char)
        return position + 1

    def _begin_call(self) -> None:
        self._call = CallReader(
            self._writer,
            None if self._is_tagged else self._known_names,
            self._rules.closing,
            is_held=self._writer.has_text and (self._rules.is_word or not self._is_tagged),
        )
        self._state = _State.CALL

    def _read_call(self, text: str, position: int) -> int:
        call = self._call
        before = call.num_steps
        end = call.read(text, position)
        self.num_steps += call.num_steps - before
        if not call.has_started:
            self._writer.hold(text[position:end])
        if call.status is CallStatus.BROKEN and not call.has_started:
            self._give_up()
        elif call.ended_by_tag:
            self._is_in_array = False
            self._state = _State.TEXT
        elif call.status is not CallStatus.OPEN:
            self._state = _State.AFTER_CALL
        return end

    def _read_name(self, text: str, position: int) -> int:
        self.num_steps += 1
        char = text[position]
        if not _is_name_character(char) or len(self._name) >= MAX_NAME_CHARACTERS:
            self._state = _State.NAME_END
            return position
        self._name.append(char)
        self._writer.hold(char)
        return position + 1

    def _read_name_end(self, text: str, position: int) -> int:
        self.num_steps += 1
        char = text[position]
        if char == "{":
            self._writer.start_call("".join(self._name))
            self._scanner = ValueScanner()
            self._state = _State.NAMED_ARGUMENTS
            return position
        if char == "[":
            self._mark = char
            self._state = _State.NAME_TAG
            return position + 1
        if char not in SPACES:
            self._give_up()
            return position
        self._writer.hold(char)
        return position + 1

    def _read_name_tag(self, text: str, position: int) -> int:
        """Read a tag that belongs to the name, or the tag of the next call, before which the name is no call."""
        self.num_steps += 1
        mark = self._mark + text[position]
        if mark == self._rules.opening:
            self._give_up()
            self._writer.hold(mark)
            self._begin_head()
        elif mark in (CALL_ID, ARGS):
            self._writer.hold(mark)
            self._state = _State.CALL_ID if mark == CALL_ID else _State.NAME_END
        elif any(tag.startswith(mark) for tag in (CALL_ID, ARGS, self._rules.opening)):
            self._mark = mark
        else:
            self._writer.hold(self._mark)
            self._give_up()
            return position
        return position + 1

    def _read_call_id(self, text: str, position: int) -> int:
        self.num_steps += 1
        if not _is_name_character(text[position]):
            self._state = _State.NAME_END
            return position
        self._writer.hold(text[position])
        return position + 1

    def _read_named_arguments(self, text: str, position: int) -> int:
        end = self._scanner.scan(text, position)
        self.num_steps += end - position
        self._writer.add_arguments(text[position:end])
        if self._scanner.is_done:
            self._writer.close_call()
            self._state = _State.AFTER_CALL
        return end

    def _read_after_call(self, text: str, position: int) -> int:
        self.num_steps += 1
        char = text[position]
        if char == "{" and (self._is_in_array or self._rules.has_many):
            self._begin_call()
            return position
        if self._rules.closing.startswith(char):
            self._mark = char
            self._state = _State.CLOSING
        elif char == "]" and self._is_in_array:
            self._is_in_array = False
            self._writer.drop()
            return position + 1
        elif char not in SPACES and char not in self._rules.separators and not (char == "," and self._is_in_array):
            self._is_in_array = False
            self._state = _State.TEXT
            return position
        self._writer.hold(char)
        return position + 1

    def _read_closing(self, text: str, position: int) -> int:
        self.num_steps += 1
        mark = self._mark + text[position]
        if self._rules.closing.startswith(mark):
            self._mark = mark
            if mark == self._rules.closing:
                self._writer.drop()
                self._is_in_array = False
                self._state = _State.TEXT
            else:
                self._writer.hold(text[position])
            return position + 1
        if self._rules.opening.startswith(self._mark):
            self._state = _State.OPENING
        else:
            self._give_up()
        return position

    def _give_up(self) -> None:
        """Give on as text the characters that were held back."""
        self._writer.release()
        self._is_in_array = False
        self._state = _State.TEXT


def _is_name_character(char: str) -> bool:
    return char.isalnum() or char in "_-."
