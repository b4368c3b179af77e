"""Turns a Python literal into JSON text, piece by piece, by one look at each character. Nothing is evaluated."""

import json
import re
from dataclasses import dataclass
from enum import Enum

from textmill_router.parsers.answer_writer import SPACES

MAX_WORD_CHARACTERS = 1000
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_WHOLE_NUMBER = re.compile(r"([+-]?)0*(\d(?:_?\d)*)")
_NUMBER = re.compile(r"([+-]?)(?=\.?\d)0*(\d(?:_?\d)*)?(?:\.((?:\d(?:_?\d)*)?))?(?:[eE]([+-]?\d+))?")
_BASED_NUMBER = re.compile(r"[+-]?0[xXoObB][0-9a-fA-F_]+")
_CLOSING = {"[": "]", "{": "}", "(": ")"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "\n": ""}
_SAME = frozenset("\\'\"/")  # signs that stand for themselves behind a backslash; JSON escapes the slash too
_NUM_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_OCTAL_DIGITS = frozenset("01234567")
_PREFIXES = frozenset({"r", "u", "b", "f", "br", "rb", "fr", "rf"})
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class _State(Enum):
    VALUE = 0
    ITEM = 1  # a value, or the end of the list
    KEY = 2  # a key, or the end of the dictionary
    COLON = 3
    AFTER = 4  # a comma, or the end of the list or dictionary
    WORD = 5  # a number or a word
    QUOTE = 6  # one quote has come: the string has one or three
    SECOND_QUOTE = 7
    STRING = 8
    CLOSING_QUOTES = 9  # of three
    ESCAPE = 10
    AFTER_STRING = 11  # another string may follow, which Python joins to the string before


@dataclass(slots=True)
class _Container:
    """A list, dictionary, set, tuple or a pair of brackets around one value, which has not ended.

    While `is_open` its brackets in JSON are not known: a first value in `{` may be a key or a member of a set, and a
    first value in `(` may stand alone.
    """

    closing: str  # in Python
    is_open: bool
    json_closing: str = "]"
    has_entry: bool = False


class LiteralReader:
    """Reads one value: a string, number, True, False, None, list, dictionary, set or tuple; also the values of JSON.

    A bare word is a string, since it can be nothing else. Strings that stand beside each other are one, as in Python.
    Sets and tuples become lists. Keys that are no strings become strings, as in `json.dumps`. Halves of surrogate pairs
    become U+FFFD.
    """

    __slots__ = (
        "_containers",
        "_escape",
        "_high",
        "_is_key",
        "_is_raw",
        "_is_triple",
        "_num_quotes",
        "_num_taken",
        "_out",
        "_quote",
        "_state",
        "_undecided",
        "_value_start",
        "_word",
        "is_broken",
        "is_done",
        "num_steps",
    )

    def __init__(self) -> None:
        self._state = _State.VALUE
        self._containers: list[_Container] = []  # the innermost last
        self._undecided: list[int] = []  # the places in the output of the first brackets that are not known
        self._is_key = False
        self._value_start = 0  # the place in the output of the key or member that is read
        self._word: list[str] = []
        self._quote = ""
        self._is_triple = False
        self._is_raw = False
        self._num_quotes = 0
        self._escape = ""  # an escape that is not complete
        self._high = 0  # a high surrogate that waits for its other half
        self._out: list[str] = []
        self._num_taken = 0  # entries of the output that were given on
        self.is_done = False
        self.is_broken = False  # the next character cannot be part of a value
        self.num_steps = 0  # the number of looks at a character

    def take(self) -> str:
        """Return the JSON text since the last take, up to the first bracket that is not known yet."""
        end = self._undecided[0] if self._undecided else len(self._out)
        out = "".join(self._out[self._num_taken : end])
        self._num_taken = max(end, self._num_taken)
        return out

    def read(self, text: str, position: int) -> int:
        """Take characters while the value goes on, and return the position of the first character not taken."""
        while position < len(text) and not (self.is_done or self.is_broken):
            if self._state is _State.STRING and not self._escape:
                position = self._read_string(text, position)
            else:
                self.num_steps += 1
                position += self._feed(text[position])
        return position

    def _feed(self, char: str) -> bool:
        """Take the character, or return False: then the character breaks the value or belongs to the next state."""
        match self._state:
            case _State.WORD:
                return self._feed_word(char)
            case _State.QUOTE | _State.SECOND_QUOTE:
                return self._feed_quote(char)
            case _State.CLOSING_QUOTES:
                return self._feed_closing_quote(char)
            case _State.ESCAPE:
                return self._feed_escape(char)
            case _State.AFTER_STRING:
                return self._feed_after_string(char)
            case _:
                return char in SPACES or self._feed_sign(char)

    def _feed_sign(self, char: str) -> bool:
        container = self._containers[-1] if self._containers else None
        match self._state:
            case _State.AFTER if char == "," and container is not None:
                self._decide(container, is_one_value=False)
                self._state = _State.KEY if container.json_closing == "}" else _State.ITEM
            case _State.AFTER | _State.ITEM | _State.KEY if container is not None and char == container.closing:
                self._decide(container, is_one_value=self._state is _State.AFTER)
                self._out.append(container.json_closing)
                self._containers.pop()
                self._end_value()
            case _State.COLON if char == ":":
                self._out.append(": ")
                self._is_key = False
                self._state = _State.VALUE
            case _State.AFTER if (
                char == ":"
                and container is not None
                and container.closing == "}"
                and (container.is_open and self._value_start == len(self._out) - 1)
            ):
                self._write_brackets(container, "{", "}")
                self._out[-1] = _as_key(self._out[-1])
                self._out.append(": ")
                self._state = _State.VALUE
            case _State.VALUE | _State.ITEM | _State.KEY:
                return self._begin_value(char)
            case _:
                self.is_broken = True
                return False
        return True

    def _decide(self, container: _Container, *, is_one_value: bool) -> None:
        """Write the first bracket: the first entry has ended without a colon behind it, or there is no entry."""
        if not container.is_open:
            return
        if container.closing == "}" and not container.has_entry:
            self._write_brackets(container, "{", "}")
        elif container.closing == ")" and is_one_value:
            self._write_brackets(container, "", "")
        else:
            self._write_brackets(container, "[", "]")

    def _write_brackets(self, container: _Container, opening: str, closing: str) -> None:
        self._out[self._undecided.pop()] = opening
        container.is_open, container.json_closing = False, closing

    def _begin_value(self, char: str) -> bool:
        is_key = self._state is _State.KEY
        is_word = char.isalnum() or char in "_+-."
        if not (char in "\"'" or is_word or (char in _CLOSING and not is_key)):
            self.is_broken = True
            return False
        if self._state is not _State.VALUE:
            container = self._containers[-1]
            if container.has_entry:
                self._out.append(", ")
            container.has_entry = True
        self._is_key = is_key
        self._value_start = len(self._out)
        if char in "\"'":
            self._out.append('"')
            self._begin_string(char, is_raw=False)
        elif is_word:
            self._word = []
            self._state = _State.WORD
            return False
        else:
            self._containers.append(_Container(_CLOSING[char], is_open=char != "["))
            if char != "[":
                self._undecided.append(len(self._out))
            self._out.append("[")
            self._state = _State.ITEM
        return True

    def _end_value(self) -> None:
        if self._is_key:
            self._state = _State.COLON
        elif self._containers:
            self._state = _State.AFTER
        else:
            self.is_done = True

    # ---- words and numbers

    def _feed_word(self, char: str) -> bool:
        if (char.isalnum() or char in "_+-.") and len(self._word) < MAX_WORD_CHARACTERS:
            self._word.append(char)
            return True
        word = "".join(self._word)
        if char in "\"'" and word.lower() in _PREFIXES:
            self._out.append('"')
            self._begin_string(char, is_raw="r" in word.lower())
            return True
        value = _WORDS.get(word) or _json_number(word) or json.dumps(word, ensure_ascii=False)
        self._out.append(_as_key(value) if self._is_key else value)
        self._end_value()
        return False

    # ---- strings

    def _begin_string(self, quote: str, *, is_raw: bool) -> None:
        self._quote, self._is_raw, self._is_triple = quote, is_raw, False
        self._state = _State.QUOTE

    def _feed_quote(self, char: str) -> bool:
        """Read on after the first quote. A second quote makes an empty string, unless a third quote follows."""
        if self._state is _State.QUOTE:
            self._state = _State.SECOND_QUOTE if char == self._quote else _State.STRING
            return char == self._quote
        if char == self._quote:
            self._is_triple = True
            self._state = _State.STRING
            return True
        self._end_string()
        return False

    def _read_string(self, text: str, position: int) -> int:
        found = _ENDS[self._quote].search(text, position)
        end = found.start() if found else len(text)
        self.num_steps += end - position + 1
        if end > position:
            self._add(text[position:end])
        if found is None:
            return end
        if found[0] == "\\":
            self._escape = "\\"
            self._state = _State.ESCAPE
        elif self._is_triple:
            self._num_quotes = 1
            self._state = _State.CLOSING_QUOTES
        else:
            self._end_string()
        return end + 1

    def _feed_closing_quote(self, char: str) -> bool:
        if char != self._quote:
            self._add(self._quote * self._num_quotes)
            self._state = _State.STRING
            return False
        self._num_quotes += 1
        if self._num_quotes == 3:
            self._end_string()
        return True

    def _end_string(self) -> None:
        self._add("")
        self._state = _State.AFTER_STRING

    def _feed_after_string(self, char: str) -> bool:
        if char in SPACES:
            return True
        if char in "\"'":
            self._begin_string(char, is_raw=False)
            return True
        self._out.append('"')
        if self._containers and self._containers[-1].is_open:  # the string may be a key
            self._out[self._value_start :] = ["".join(self._out[self._value_start :])]
        self._end_value()
        return False

    def _feed_escape(self, char: str) -> bool:
        escape = self._escape
        kind = escape[1:2]
        if self._is_raw or (not kind and not (char in _NUM_DIGITS or char in _OCTAL_DIGITS)):
            self._end_escape(_simple_escape(char, is_raw=self._is_raw))
            return True
        if not kind:
            self._escape += char
            return True
        if kind in _OCTAL_DIGITS:
            if char in _OCTAL_DIGITS and len(escape) < 4:
                self._escape += char
                return True
            self._end_escape(chr(int(escape[1:], 8)))
            return False
        if char not in _HEX_DIGITS:
            self._end_escape(escape)  # the characters are no escape, so they are text
            return False
        self._escape += char
        if len(self._escape) == 2 + _NUM_DIGITS[kind]:
            self._end_unit(int(self._escape[2:], 16))
        return True

    def _end_escape(self, text: str) -> None:
        self._escape = ""
        self._state = _State.STRING
        if text:
            self._add(text)

    def _end_unit(self, unit: int) -> None:
        high, self._high = self._high, 0
        if high and 0xDC00 <= unit < 0xE000:
            self._end_escape(chr(0x10000 + ((high - 0xD800) << 10) + (unit - 0xDC00)))
            return
        self._end_escape(_REPLACEMENT if high else "")
        if 0xD800 <= unit < 0xDC00:
            self._high = unit
        else:
            is_character = unit < 0x110000 and not 0xDC00 <= unit < 0xE000
            self._add(chr(unit) if is_character else _REPLACEMENT)

    def _add(self, text: str) -> None:
        """Give on characters of a string. Half a surrogate pair before the characters stays alone."""
        if self._high:
            self._high = 0
            text = _REPLACEMENT + text
        self._out.append(json.dumps(text, ensure_ascii=False)[1:-1])


_ENDS = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}


def _simple_escape(char: str, *, is_raw: bool) -> str:
    if is_raw or (char not in _ESCAPES and char not in _SAME):
        return "\\" + char
    return _ESCAPES.get(char, char)


def _as_key(value: str) -> str:
    """Return the JSON text of a key from that of a value which is no list and no dictionary."""
    return value if value[0] == '"' else json.dumps(value)


def _json_number(word: str) -> str:
    """Return a Python number as JSON writes numbers, or an empty text for a word that is no number."""
    if _BASED_NUMBER.fullmatch(word):
        try:
            return str(int(word, 0))
        except ValueError:
            return ""
    if whole := _WHOLE_NUMBER.fullmatch(word):
        return f"{whole[1].removeprefix('+')}{whole[2].replace('_', '')}"
    found = _NUMBER.fullmatch(word)
    if found is None:
        return ""
    sign, before, after, exponent = found.groups()
    number = f"{sign.removeprefix('+')}{(before or '0').replace('_', '')}"
    number += f".{after.replace('_', '')}" if after else ".0" if exponent is None else ""
    return number + (f"e{exponent}" if exponent else "")
