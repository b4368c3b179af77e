"""Reads one tool call that is a JSON object, and gives on the name, then the arguments as they come."""

import json
from collections.abc import Set
from enum import Enum

from textmill_router.parsers.answer_writer import SPACES, AnswerWriter
from textmill_router.parsers.json_value import StringDecoder, ValueScanner
from textmill_router.parsers.whole_json import closing_brackets

MAX_KEY_CHARACTERS = 64
MAX_NAME_CHARACTERS = 256
_SCALAR_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzE0123456789+-.")
_ARGUMENT_KEYS = ("arguments", "parameters")
# Where no tag says that a call follows, an object with any other key is no call.
_CALL_KEYS = frozenset({"name", "type", "id", "function", *_ARGUMENT_KEYS})


class CallStatus(Enum):
    """OPEN takes more characters. DONE has seen the object's end. BROKEN cannot take the next character into a call."""

    OPEN = 0
    DONE = 1
    BROKEN = 2


class _State(Enum):
    OBJECT = 0
    FIRST_KEY = 1
    NEXT_KEY = 2
    IN_KEY = 3
    COLON = 4
    VALUE = 5
    IN_NAME = 6
    ARGUMENTS = 7  # an object, given on as written
    ARGUMENT_STRING = 8  # an object inside a string, given on decoded
    SKIP = 9
    SCALAR = 10
    AFTER_VALUE = 11
    IN_TAG = 12


class CallReader:
    """`{"name": ..., "arguments" or "parameters": {...}}`, keys in any order, also one level down under `function`.

    The call starts when the name is known and the arguments have begun to be an object. Before that nothing has been
    told, so that a broken one can be shown as text. `known_names`: a call by another name is broken; None takes any.
    `closing_tag` ends the call also inside its arguments, outside strings. With `is_held` the call starts at its end,
    if its arguments are JSON then.
    """

    __slots__ = (
        "_are_arguments_done",
        "_arguments_key",
        "_closing_tag",
        "_decoder",
        "_held",
        "_held_arguments",
        "_is_escaped",
        "_is_held",
        "_is_wrapped",
        "_key",
        "_known_names",
        "_name",
        "_scanner",
        "_state",
        "_writer",
        "ended_by_tag",
        "has_started",
        "num_steps",
        "status",
    )

    def __init__(
        self, writer: AnswerWriter, known_names: Set[str] | None, closing_tag: str, *, is_held: bool = False
    ) -> None:
        self._writer = writer
        self._known_names = known_names
        self._closing_tag = closing_tag
        self._is_held = is_held
        self._state = _State.OBJECT
        self._key = ""
        self._held: list[str] = []  # characters of the key, name, scalar or tag being read
        self._is_escaped = False  # the next character of a key or name
        self._name = ""
        self._arguments_key = ""  # the key under which the arguments stand, once it has come
        self._held_arguments: list[str] = []  # came before the call has started
        self._are_arguments_done = False
        self._is_wrapped = False  # inside the object under `function`
        self._scanner = ValueScanner()
        self._decoder = StringDecoder()
        self.status = CallStatus.OPEN
        self.has_started = False
        self.ended_by_tag = False
        self.num_steps = 0  # the number of looks at a character

    def read(self, text: str, position: int) -> int:
        """Take characters while the call is open, and return the position of the first character not taken."""
        while position < len(text) and self.status is CallStatus.OPEN:
            if self._state in (_State.ARGUMENTS, _State.SKIP):
                position = self._scan(text, position)
            else:
                self.num_steps += 1
                if self._feed(text[position]):
                    position += 1
        return position

    def finish(self, was_cut: bool) -> None:
        """Note that nothing more comes. A cut answer loses a tag inside the arguments that has only begun."""
        if was_cut:
            return
        if self._state is _State.IN_TAG:
            self._give_arguments("".join(self._held))
        self._writer.close_call()

    def _scan(self, text: str, position: int) -> int:
        end = self._scanner.scan(text, position)
        self.num_steps += end - position + 1
        is_argument = self._state is _State.ARGUMENTS
        if is_argument and end > position:
            self._give_arguments(text[position:end])
        if self._scanner.is_done:
            self._state = _State.AFTER_VALUE
            if is_argument:
                self._end_arguments()
        elif end < len(text):
            self._state = _State.IN_TAG
            self._held.clear()
        return end

    def _feed(self, char: str) -> bool:
        """Take the character, or return False: then the character breaks the call or belongs to the next state."""
        match self._state:
            case _State.IN_KEY | _State.IN_NAME:
                return self._feed_string(char)
            case _State.ARGUMENT_STRING:
                return self._feed_argument_string(char)
            case _State.IN_TAG:
                return self._feed_tag(char)
            case _State.SCALAR:
                return self._feed_scalar(char)
            case _:
                return char in SPACES or self._feed_structure(char)

    def _feed_structure(self, char: str) -> bool:
        match self._state, char:
            case _State.OBJECT, "{":
                self._state = _State.FIRST_KEY
            case ((_State.FIRST_KEY | _State.NEXT_KEY), '"'):
                self._state = _State.IN_KEY
                self._held.clear()
            case ((_State.FIRST_KEY | _State.AFTER_VALUE), "}"):
                return self._end_object()
            case _State.COLON, ":":
                self._state = _State.VALUE
            case _State.AFTER_VALUE, ",":
                self._state = _State.NEXT_KEY
            case _State.VALUE, _:
                return self._begin_value(char)
            case _:
                return self._break()
        return True

    def _begin_value(self, char: str) -> bool:
        key = self._key
        is_name = key in ("name", "tool_name") or (key == "function" and char == '"')
        if is_name and not self._name:
            self._state = _State.IN_NAME
            self._held.clear()
            return char == '"' or self._break()
        if key == "function" and char == "{" and not self._is_wrapped and not self._arguments_key:
            self._is_wrapped = True
            self._state = _State.FIRST_KEY
            return True
        if key in _ARGUMENT_KEYS and not self._arguments_key:
            return self._begin_arguments(char)
        if char in '{["':
            self._scanner = ValueScanner()
            self._state = _State.SKIP
            return False
        return self._begin_scalar(char)

    def _begin_arguments(self, char: str) -> bool:
        if char == "{":
            self._arguments_key = self._key
            self._scanner = ValueScanner(stops_at_tag=bool(self._closing_tag))
            self._state = _State.ARGUMENTS
            return False
        if char == '"':
            self._arguments_key = self._key
            self._decoder = StringDecoder()
            self._state = _State.ARGUMENT_STRING
            return True
        return self._begin_scalar(char) if char == "n" else self._break()

    def _begin_scalar(self, char: str) -> bool:
        if char not in _SCALAR_CHARACTERS:
            return self._break()
        self._held.clear()
        self._state = _State.SCALAR
        return False

    def _feed_scalar(self, char: str) -> bool:
        if char in _SCALAR_CHARACTERS and len(self._held) < MAX_KEY_CHARACTERS:
            self._held.append(char)
            return True
        # A call whose arguments are null has no arguments.
        if self._key in _ARGUMENT_KEYS and not self._arguments_key and "".join(self._held) != "null":
            return self._break()
        self._state = _State.AFTER_VALUE
        return False

    def _feed_string(self, char: str) -> bool:
        """Collect a key or a name with its escapes, and decode the text at the closing quote."""
        held = self._held
        if char != '"' or self._is_escaped:
            self._is_escaped = char == "\\" and not self._is_escaped
            limit = MAX_KEY_CHARACTERS if self._state is _State.IN_KEY else MAX_NAME_CHARACTERS
            if len(held) >= limit:
                return self._break()
            held.append(char)
            return True
        return self._end_string("".join(held))

    def _end_string(self, raw: str) -> bool:
        try:
            text: str = json.loads(f'"{raw}"')
            text.encode()
        except ValueError:
            return self._break()
        if self._known_names is not None and raw not in _spellings(text):
            return self._break()
        if self._state is _State.IN_KEY:
            if self._known_names is not None and text not in _CALL_KEYS:
                return self._break()
            self._key = text
            self._state = _State.COLON
            return True
        if not text or (self._known_names is not None and text not in self._known_names):
            return self._break()
        self._name = text
        self._state = _State.AFTER_VALUE
        if self._held_arguments and not self._is_held:
            self._start()
        return True

    def _feed_argument_string(self, char: str) -> bool:
        text = self._decoder.feed(char)
        if self._decoder.is_broken:
            return self._break()
        is_begun = self.has_started or bool(self._held_arguments)
        if not is_begun:
            text = text.lstrip(SPACES)
            if text and not text.startswith("{"):
                return self._break()
        if text:
            self._give_arguments(text)
        if self._decoder.is_done:
            self._state = _State.AFTER_VALUE
            self._end_arguments()
        return True

    def _feed_tag(self, char: str) -> bool:
        seen = "".join(self._held) + char
        if self._closing_tag.startswith(seen):
            self._held.append(char)
            if seen == self._closing_tag:
                self.ended_by_tag = True
                self.status = CallStatus.DONE
                self._writer.close_call()
            return True
        # The text is no tag. Its first character cannot begin another tag, but the next character may.
        self._state = _State.ARGUMENTS
        self._give_arguments("".join(self._held))
        return False

    def _give_arguments(self, text: str) -> None:
        if not self._name or (self._is_held and not self.has_started):
            self._held_arguments.append(text)
            return
        if not self.has_started:
            self._start()
        self._writer.add_arguments(text)

    def _end_arguments(self) -> None:
        self._are_arguments_done = True
        if self.has_started:
            self._writer.close_call()

    def _start(self) -> None:
        self.has_started = True
        self._writer.start_call(self._name)
        if self._held_arguments:
            self._writer.add_arguments("".join(self._held_arguments))
            self._held_arguments.clear()
        if self._are_arguments_done:
            self._writer.close_call()

    def _end_object(self) -> bool:
        if self._is_wrapped:
            self._is_wrapped = False
            self._state = _State.AFTER_VALUE
            return True
        if not self._name:
            return self._break()
        if not self.has_started:
            held = "".join(self._held_arguments) or "{}"
            if self._is_held and closing_brackets(held) != "":
                return self._break()
            self._held_arguments = [held]
            self._are_arguments_done = True
            self._start()
        self.status = CallStatus.DONE
        return True

    def _break(self) -> bool:
        self.status = CallStatus.BROKEN
        if self.has_started:
            self._writer.close_call()
        return False


def _spellings(text: str) -> tuple[str, str]:
    """Return the spellings of a name that begins a call without a tag, which grammars of strict tools know too."""
    return json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]
