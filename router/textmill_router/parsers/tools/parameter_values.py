"""Turns the text of one parameter, which stands without quotes between two tags, into JSON text."""

import json
import re
from typing import Protocol

from textmill_router.parsers.answer_writer import SPACES
from textmill_router.parsers.tools.parameters import json_type

NULLS = ("null", "None")
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}  # as the published templates write them
_IN_JSON = re.compile(r'["<]')
_IN_JSON_STRING = re.compile(r'["\\\n]')


class ParameterValue(Protocol):
    """The text of a value in pieces, up to its closing tag."""

    def find_tag(self, text: str, position: int) -> int:
        """Return where the next tag may begin, or the length of the text."""
        ...

    def push(self, text: str) -> str:
        """Take more of the value, and return the JSON text that this part brings."""
        ...

    def finish(self) -> str:
        """Return the rest of the JSON text at the closing tag."""
        ...


def is_string(types: frozenset[str]) -> bool:
    """Whether a value is written without quotes, because the value can only be a string or null."""
    return types <= {"string", "null"} and "string" in types


def new_value(types: frozenset[str], *, has_lines: bool) -> ParameterValue:
    """Return the reader of a value of these types. With `has_lines` the value stands on lines of its own."""
    if is_string(types):
        return _StringValue(may_be_null="null" in types, has_lines=has_lines)
    return _OtherValue(types, has_lines=has_lines)


class _StringValue:
    """A string, given on as it comes. `may_be_null`: the words `null` and `None` alone are null."""

    def __init__(self, *, may_be_null: bool, has_lines: bool) -> None:
        self._has_lines = has_lines
        self._is_at_start = True
        self._has_newline = False  # at the end so far; the new line counts only if more text follows
        self._word: str | None = "" if may_be_null else None  # the text, while the text may become the word for null
        self._has_quote = False

    def find_tag(self, text: str, position: int) -> int:
        found = text.find("<", position)
        return len(text) if found < 0 else found

    def push(self, text: str) -> str:
        if self._has_lines:
            text = self._without_outer_lines(text)
        if self._word is not None:
            self._word += text
            if any(word.startswith(self._word) for word in NULLS) and not self._has_newline:
                return ""
            if self._word in NULLS:
                return ""
            text, self._word = self._word, None
        quote = "" if self._has_quote else '"'
        self._has_quote = True
        return quote + json.dumps(text, ensure_ascii=False)[1:-1]

    def finish(self) -> str:
        if self._word in NULLS:
            return "null"
        quote = "" if self._has_quote else '"'
        return quote + json.dumps(self._word or "", ensure_ascii=False)[1:-1] + '"'

    def _without_outer_lines(self, text: str) -> str:
        """Return the text without the new line behind the first tag and the one that may stand before the last tag."""
        if self._has_newline:
            text, self._has_newline = "\n" + text, False
        if self._is_at_start and text:
            text = text.removeprefix("\n")
            self._is_at_start = False
        if text.endswith("\n"):
            text, self._has_newline = text[:-1], True
        return text


class _OtherValue:
    """A value that is known at its closing tag: the JSON value that its text is, else a string.

    `types` are those that the schema allows. Inside a JSON string the closing tag is text; such a string ends with its
    line, so that a quote too many does not swallow the rest of the answer.
    """

    def __init__(self, types: frozenset[str], *, has_lines: bool) -> None:
        self._types = types
        self._has_lines = has_lines
        self._parts: list[str] = []
        self._is_json: bool | None = None  # None while only spaces have come
        self._is_in_string = False
        self._is_escaped = False

    def find_tag(self, text: str, position: int) -> int:
        if self._is_json is None:
            rest = text[position:].lstrip(SPACES)
            if not rest:
                return len(text)
            self._is_json = rest[0] in '{["'
        while position < len(text):
            if self._is_escaped:
                self._is_escaped = False
                position += 1
                continue
            found = (_IN_JSON_STRING if self._is_in_string else _IN_JSON).search(text, position)
            if found is None:
                return len(text)
            position = found.end()
            match found[0]:
                case "<":
                    return position - 1
                case "\\":
                    self._is_escaped = True
                case '"':
                    self._is_in_string = self._is_json and not self._is_in_string
                case _:
                    self._is_in_string = False
        return position

    def push(self, text: str) -> str:
        self._parts.append(text)
        return ""

    def finish(self) -> str:
        text = "".join(self._parts)
        word = text.strip(SPACES)
        word = _PYTHON_WORDS.get(word, word)
        try:
            kind = json_type(json.loads(word, parse_constant=_no_number))
        except (ValueError, RecursionError):
            kind = ""
        if kind and (kind in self._types or "string" not in self._types):
            return word
        if self._has_lines:
            text = text.removeprefix("\n").removesuffix("\n")
        return json.dumps(text, ensure_ascii=False)


def _no_number(word: str) -> float:
    raise ValueError(word)
