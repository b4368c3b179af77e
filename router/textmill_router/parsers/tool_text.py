"""Parts text from the tool calls in it, in one pass."""

import re
from collections.abc import Callable, Set
from dataclasses import dataclass
from enum import Enum

from textmill_router.parsers.deltas import ContentText, Delta, ToolArguments, ToolCallStart
from textmill_router.parsers.formats import ToolFormat
from textmill_router.parsers.json_call import MAX_NAME_CHARACTERS, SPACES, CallReader, CallStatus
from textmill_router.parsers.json_value import ValueScanner


@dataclass(frozen=True, slots=True)
class _Rules:
    """What is a call in a format."""

    starts: re.Pattern[str]  # characters in text with which a call may begin
    opening: str = ""  # a tag before calls of any name
    closing: str = ""  # a tag after them
    separators: str = ""  # between calls, beside spaces
    has_bare_names: bool = False  # name{...} after the tag


# No tag has its first character twice, so that a broken one is text but for the character that broke it.
_RULES = {
    ToolFormat.HERMES: _Rules(re.compile("<"), "<tool_call>", "</tool_call>", separators="}"),
    ToolFormat.LLAMA3_JSON: _Rules(re.compile(r"[<{]"), "<|python_tag|>", separators=";"),
    ToolFormat.MISTRAL: _Rules(re.compile(r"\["), "[TOOL_CALLS]", has_bare_names=True),
    ToolFormat.JSON: _Rules(re.compile(r"[\[{]"), separators=";,"),
}
_CALL_ID, _ARGS = "[CALL_ID]", "[ARGS]"


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


class ToolReader:
    """Fed with text, gives deltas. What may become a call is held back until it is one or cannot be.

    A call in an opening tag may have any name, since the client must learn of it; without a tag only the names of the
    request's tools count, or every JSON answer would be suspect. What is no call is text, tags included. Spaces around
    calls are dropped; text that begins after a call and has none before loses its leading spaces.
    """

    __slots__ = (
        "_call",
        "_handlers",
        "_has_text",
        "_is_in_array",
        "_is_tagged",
        "_known_names",
        "_mark",
        "_name",
        "_new_id",
        "_num_calls",
        "_out",
        "_pending",
        "_rules",
        "_scanner",
        "_state",
        "num_steps",
    )

    def __init__(self, tools: ToolFormat, known_names: Set[str], new_id: Callable[[], str]) -> None:
        self._rules = _RULES[tools]
        self._known_names = known_names
        self._new_id = new_id
        self._state = _State.TEXT
        self._pending: list[str] = []  # held back: spaces, then what may be a call
        self._mark = ""  # the part of a tag that has been seen
        self._name: list[str] = []
        self._is_tagged = False
        self._is_in_array = False
        self._has_text = False
        self._num_calls = 0
        self._call = CallReader(self, None, "")
        self._scanner = ValueScanner()
        self._out: list[Delta] = []
        self.num_steps = 0  # characters looked at, each look counted
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
        """What the text brings."""
        position = 0
        while position < len(text):
            position = self._handlers[self._state](text, position)
        out, self._out = self._out, []
        return out

    def finish(self, was_cut: bool) -> list[Delta]:
        """What was held back. The beginning of a tag or of a call in a tag is dropped when the answer was cut."""
        match self._state:
            case _State.TEXT:
                if not self._num_calls:
                    self._release()
            case _State.CALL if self._call.has_started:
                self._call.finish(was_cut)
            case _State.NAMED_ARGUMENTS | _State.AFTER_CALL | _State.CLOSING:
                pass
            case _:
                is_tagged = self._is_tagged or self._state is _State.OPENING or self._num_calls > 0
                if not (was_cut and is_tagged):
                    self._pending.append(self._mark if self._state is _State.NAME_TAG else "")
                    self._release()
        out, self._out = self._out, []
        return out

    @property
    def is_in_call(self) -> bool:
        """A call has begun and its arguments have not ended."""
        return self._state is _State.NAMED_ARGUMENTS or (self._state is _State.CALL and self._call.has_started)

    # ---- states: each takes a character or more, or goes to another state

    def _read_text(self, text: str, position: int) -> int:
        found = self._rules.starts.search(text, position)
        end = found.start() if found else len(text)
        self.num_steps += end - position + 1
        if end > position:
            self._add_text(text[position:end])
            return end
        char = text[position]
        if self._rules.opening.startswith(char):
            return self._begin_opening(char, position)
        self._is_tagged = False
        if char == "{":
            self._begin_call()
            return position
        self._is_in_array = True
        self._pending.append(char)
        self._state = _State.HEAD
        return position + 1

    def _begin_opening(self, char: str, position: int) -> int:
        self._pending.append(char)
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
        self._pending.append(text[position])
        if mark == rules.opening:
            self._begin_head()
        elif mark == rules.closing:
            self._give_up()  # closes nothing; held back only so that a cut answer does not end in half of it
        return position + 1

    def _begin_head(self) -> None:
        self._is_tagged = True
        self._is_in_array = False
        self._state = _State.HEAD

    def _read_head(self, text: str, position: int) -> int:
        self.num_steps += 1
        char = text[position]
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
        self._pending.append(char)
        return position + 1

    def _begin_call(self) -> None:
        self._call = CallReader(self, None if self._is_tagged else self._known_names, self._rules.closing)
        self._state = _State.CALL

    def _read_call(self, text: str, position: int) -> int:
        call = self._call
        before = call.num_steps
        end = call.read(text, position)
        self.num_steps += call.num_steps - before
        if not call.has_started:
            self._pending.append(text[position:end])
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
        self._pending.append(char)
        return position + 1

    def _read_name_end(self, text: str, position: int) -> int:
        self.num_steps += 1
        char = text[position]
        if char == "{":
            self.on_start("".join(self._name))
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
        self._pending.append(char)
        return position + 1

    def _read_name_tag(self, text: str, position: int) -> int:
        """The name's own tags, or the tag of the next call: then this was none."""
        self.num_steps += 1
        mark = self._mark + text[position]
        if mark == self._rules.opening:
            self._give_up()
            self._pending.append(mark)
            self._begin_head()
        elif mark in (_CALL_ID, _ARGS):
            self._pending.append(mark)
            self._state = _State.CALL_ID if mark == _CALL_ID else _State.NAME_END
        elif any(tag.startswith(mark) for tag in (_CALL_ID, _ARGS, self._rules.opening)):
            self._mark = mark
        else:
            self._pending.append(self._mark)
            self._give_up()
            return position
        return position + 1

    def _read_call_id(self, text: str, position: int) -> int:
        self.num_steps += 1
        if not _is_name_character(text[position]):
            self._state = _State.NAME_END
            return position
        self._pending.append(text[position])
        return position + 1

    def _read_named_arguments(self, text: str, position: int) -> int:
        end = self._scanner.scan(text, position)
        self.num_steps += end - position
        self.on_arguments(text[position:end])
        if self._scanner.is_done:
            self._state = _State.AFTER_CALL
        return end

    def _read_after_call(self, text: str, position: int) -> int:
        self.num_steps += 1
        char = text[position]
        if char == "{" and self._is_in_array:
            self._begin_call()
            return position
        if self._rules.closing.startswith(char):
            self._mark = char
            self._state = _State.CLOSING
        elif char == "]" and self._is_in_array:
            self._is_in_array = False
            self._pending.clear()
            return position + 1
        elif char not in SPACES and char not in self._rules.separators and not (char == "," and self._is_in_array):
            self._is_in_array = False
            self._state = _State.TEXT
            return position
        self._pending.append(char)
        return position + 1

    def _read_closing(self, text: str, position: int) -> int:
        self.num_steps += 1
        mark = self._mark + text[position]
        if self._rules.closing.startswith(mark):
            self._mark = mark
            if mark == self._rules.closing:
                self._pending.clear()
                self._is_in_array = False
                self._state = _State.TEXT
            else:
                self._pending.append(text[position])
            return position + 1
        if self._rules.opening.startswith(self._mark):
            self._state = _State.OPENING
        else:
            self._give_up()
        return position

    # ---- called by the call that is read

    def on_start(self, name: str) -> None:
        self._pending.clear()
        self._out.append(ToolCallStart(self._num_calls, self._new_id(), name))
        self._num_calls += 1

    def on_arguments(self, text: str) -> None:
        self._out.append(ToolArguments(self._num_calls - 1, text))

    # ---- text

    def _add_text(self, text: str) -> None:
        """Spaces at the end wait: they belong to the text only if more of it follows."""
        body = text.rstrip(SPACES)
        if body:
            self._pending.append(body)
            self._release()
        if len(body) < len(text):
            self._pending.append(text[len(body) :])

    def _give_up(self) -> None:
        """What was held back is text."""
        self._release()
        self._is_in_array = False
        self._state = _State.TEXT

    def _release(self) -> None:
        text = "".join(self._pending)
        self._pending.clear()
        if self._num_calls and not self._has_text:
            text = text.lstrip(SPACES)
        if text:
            self._has_text = True
            self._out.append(ContentText(text))


def _is_name_character(char: str) -> bool:
    return char.isalnum() or char in "_-."
