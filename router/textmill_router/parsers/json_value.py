"""Finds where a JSON value ends and decodes a JSON string, piece by piece, looking at each character once."""

import re

_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]]')
_OUTSIDE_OR_TAG = re.compile(r'["{}\[\]<]')

_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class ValueScanner:
    """Passes over one object, array or string, which begins with the first character scanned.

    The scanner counts brackets, does not match them by kind, and does not judge the text between them. With
    `stops_at_tag` the scan stops before a `<` outside strings, where JSON has none.
    """

    __slots__ = ("_depth", "_is_escaped", "_is_in_string", "_outside", "is_done")

    def __init__(self, *, stops_at_tag: bool = False) -> None:
        self._outside = _OUTSIDE_OR_TAG if stops_at_tag else _OUTSIDE
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self.is_done = False

    def scan(self, text: str, position: int) -> int:
        """Return where the value ends in `text`, else where the scan stopped, which is the end of the text or a `<`."""
        while position < len(text):
            if self._is_escaped:
                self._is_escaped = False
                position += 1
                continue
            found = (_IN_STRING if self._is_in_string else self._outside).search(text, position)
            if found is None:
                return len(text)
            position = found.end()
            match found[0]:
                case "<":
                    return position - 1
                case "\\":
                    self._is_escaped = True
                case '"':
                    self._is_in_string = not self._is_in_string
                    self.is_done = not self._is_in_string and self._depth == 0
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth -= 1
                    self.is_done = self._depth <= 0
            if self.is_done:
                return position
        return position


class StringDecoder:
    """Decodes the inside of a JSON string, one character at a time. Halves of surrogate pairs become U+FFFD."""

    __slots__ = ("_escape", "_high", "is_broken", "is_done")

    def __init__(self) -> None:
        self._escape = ""  # an escape that is not complete
        self._high = 0  # a high surrogate that waits for its other half
        self.is_done = False  # the closing quote has come
        self.is_broken = False  # the character is no part of an escape and has not been taken

    def feed(self, char: str) -> str:
        """Take a character, and return the text that the character completes."""
        if self._escape:
            return self._feed_escape(char)
        if char == "\\":
            self._escape = char
            return ""
        self.is_done = char == '"'
        return self._end_pair() + ("" if self.is_done else char)

    def _feed_escape(self, char: str) -> str:
        escape = self._escape
        if len(escape) == 1 and char != "u":
            if char not in _ESCAPES:
                self.is_broken = True
                return ""
            self._escape = ""
            return self._end_pair() + _ESCAPES[char]
        if len(escape) > 1 and char not in _HEX_DIGITS:
            self.is_broken = True
            return ""
        if len(escape) < 5:
            self._escape = escape + char
            return ""
        self._escape = ""
        return self._decode_unit(int(escape[2:] + char, 16))

    def _decode_unit(self, unit: int) -> str:
        high, self._high = self._high, 0
        if high and 0xDC00 <= unit < 0xE000:
            return chr(0x10000 + ((high - 0xD800) << 10) + (unit - 0xDC00))
        before = _REPLACEMENT if high else ""
        if 0xD800 <= unit < 0xDC00:
            self._high = unit
            return before
        return before + (_REPLACEMENT if 0xDC00 <= unit < 0xE000 else chr(unit))

    def _end_pair(self) -> str:
        high, self._high = self._high, 0
        return _REPLACEMENT if high else ""
