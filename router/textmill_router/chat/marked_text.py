"""Texts of a conversation that carry marks, which no operation of a chat template sees.

A mark shows after rendering where a text of users or tools stands in the prompt. Templates look into texts before
they print them (`'</think>' in content`, `content.split('\\n')`, `content | trim`), and must decide as if there were no
marks. Therefore a `MarkedText` answers each question from its characters without the marks, and each text that is made
from a `MarkedText` keeps the marks between its characters. Only a join by Python's own `"".join` shows the marks. A
rendered prompt is such a join.
"""

import functools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, Self, SupportsIndex

# A code point that Unicode reserves for inside use; removed from a conversation's own text where marks are needed.
MARK = "\ufdd0"


def plain(value: Any) -> Any:
    """Return a value without marks: a text or a tuple of texts; anything else is the value itself."""
    if isinstance(value, MarkedText):
        return value.clean
    return tuple(plain(entry) for entry in value) if isinstance(value, tuple) else value


def with_marks_hidden(value: Any) -> Any:
    """Return a text in which the marks of other texts have been joined as a MarkedText, anything else as it is."""
    return MarkedText(value) if type(value) is str and MARK in value else value


def _question(name: str) -> Any:
    """Return a method that gives no text, and answers for the text without marks."""
    method = getattr(str, name)

    @functools.wraps(method)
    def ask(text: "MarkedText", *args: Any, **kwargs: Any) -> Any:
        return method(text.clean, *map(plain, args), **kwargs)

    return ask


def _change(name: str) -> Any:
    """Return a method that gives another text, in which no character is known to be the template's."""
    method = getattr(str, name)

    @functools.wraps(method)
    def make(text: "MarkedText", *args: Any, **kwargs: Any) -> str:
        return MarkedText.all_marked(method(text.clean, *map(plain, args), **kwargs))

    return make


class MarkedText(str):
    """A text whose characters include marks; its methods are those of the text without the marks."""

    __slots__ = ("_places", "clean")

    clean: str  # the text without marks
    _places: list[int]  # of the marks: before which character of `clean` each stands

    def __new__(cls, marked: str) -> Self:
        text = super().__new__(cls, marked)
        parts = str.split(marked, MARK)
        text.clean = "".join(parts)
        text._places = []
        place = 0
        for part in parts[:-1]:
            place += len(part)
            text._places.append(place)
        return text

    @classmethod
    def of_parts(cls, parts: Iterable[str], between: str = "") -> "MarkedText":
        """Join texts with `between`, marks and all."""
        return cls(str.join(between, parts))

    @classmethod
    def all_marked(cls, text: str) -> "MarkedText":
        """Return a text with a mark at every place: none of its characters is known to be the template's."""
        return cls(MARK + str.join(MARK, text) + MARK)

    # ---- parts of the text, which keep their marks; an end that the template made is marked too

    def cut(self, start: int, stop: int) -> str:
        """Return the characters from `start` to `stop` of the text without marks."""
        if start == 0 and stop == len(self.clean):
            return self
        if start >= stop:
            return ""
        first = start + bisect_left(self._places, start)
        last = stop + bisect_right(self._places, stop)
        part = str.__getitem__(self, slice(first, last))
        return MarkedText((MARK if start else "") + part + (MARK if stop < len(self.clean) else ""))

    def _in_turn(self, pieces: Iterable[str]) -> list[str]:
        """Return the same pieces of this text, found one behind the other, with their marks."""
        found = []
        place = 0
        for piece in pieces:
            place = self.clean.index(piece, place)
            found.append(self.cut(place, place + len(piece)))
            place += len(piece)
        return found

    def __getitem__(self, key: "SupportsIndex | slice") -> str:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self.clean))
            return self.cut(start, stop) if step == 1 else MarkedText.all_marked(self.clean[key])
        index = range(len(self.clean))[key]
        return self.cut(index, index + 1)

    def __iter__(self) -> Iterator[str]:
        return (self.cut(index, index + 1) for index in range(len(self.clean)))

    def strip(self, characters: str | None = None, /) -> str:
        start = len(self.clean) - len(self.clean.lstrip(plain(characters)))
        return self.cut(start, max(start, len(self.clean.rstrip(plain(characters)))))

    def lstrip(self, characters: str | None = None, /) -> str:
        return self.cut(len(self.clean) - len(self.clean.lstrip(plain(characters))), len(self.clean))

    def rstrip(self, characters: str | None = None, /) -> str:
        return self.cut(0, len(self.clean.rstrip(plain(characters))))

    def removeprefix(self, prefix: str, /) -> str:
        return self.cut(len(self.clean) - len(self.clean.removeprefix(plain(prefix))), len(self.clean))

    def removesuffix(self, suffix: str, /) -> str:
        return self.cut(0, len(self.clean.removesuffix(plain(suffix))))

    def partition(self, separator: str, /) -> tuple[str, str, str]:
        before, found, after = self._consecutive(self.clean.partition(plain(separator)))
        return before, found, after

    def rpartition(self, separator: str, /) -> tuple[str, str, str]:
        before, found, after = self._consecutive(self.clean.rpartition(plain(separator)))
        return before, found, after

    def _consecutive(self, pieces: Iterable[str]) -> list[str]:
        """Return pieces that make up the whole text, with their marks."""
        found = []
        place = 0
        for piece in pieces:
            found.append(self.cut(place, place + len(piece)))
            place += len(piece)
        return found

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._split(self.clean.split(plain(sep), maxsplit), plain(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._split(self.clean.rsplit(plain(sep), maxsplit), plain(sep))

    def _split(self, pieces: list[str], separator: str | None) -> list[str]:
        if separator is None:  # pieces without a space at their beginning, so that each is found at its own place
            return self._in_turn(pieces)
        found = []
        place = 0
        for piece in pieces:
            found.append(self.cut(place, place + len(piece)))
            place += len(piece) + len(separator)
        return found

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._consecutive(self.clean.splitlines(keepends=True))
        if keepends:
            return lines
        bare = self.clean.splitlines()
        return [self._without_end(line, len(text)) for line, text in zip(lines, bare, strict=True)]

    @staticmethod
    def _without_end(line: str, length: int) -> str:
        return line.cut(0, length) if isinstance(line, MarkedText) else line[:length]

    # ---- texts made of this one and others

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if not plain(old):
            return MarkedText.all_marked(self.clean.replace("", plain(new), count))
        return MarkedText.of_parts(self.split(old, count), new)

    def join(self, texts: Iterable[str], /) -> str:
        return MarkedText.of_parts(texts, self)

    def __add__(self, other: str, /) -> str:
        return MarkedText(str.__add__(self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return MarkedText(str.__add__(other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex, /) -> str:
        return MarkedText(str.__mul__(self, count))

    __rmul__ = __mul__

    def __mod__(self, values: Any, /) -> str:
        return MarkedText.all_marked(self.clean % values)

    def __rmod__(self, pattern: str) -> str:
        return MarkedText(str.__mod__(plain(pattern), (self,)))

    def __format__(self, form: str, /) -> str:
        return MarkedText.all_marked(format(self.clean, form)) if form else self

    capitalize, casefold, lower = _change("capitalize"), _change("casefold"), _change("lower")
    swapcase, title, upper = _change("swapcase"), _change("title"), _change("upper")
    center, ljust, rjust, zfill = _change("center"), _change("ljust"), _change("rjust"), _change("zfill")
    expandtabs, translate = _change("expandtabs"), _change("translate")
    format, format_map = _change("format"), _change("format_map")

    # ---- questions about the text

    count, find, index = _question("count"), _question("find"), _question("index")
    rfind, rindex = _question("rfind"), _question("rindex")
    startswith, endswith, encode = _question("startswith"), _question("endswith"), _question("encode")
    isalnum, isalpha, isascii = _question("isalnum"), _question("isalpha"), _question("isascii")
    isdecimal, isdigit, isnumeric = _question("isdecimal"), _question("isdigit"), _question("isnumeric")
    isidentifier, isprintable, isspace = _question("isidentifier"), _question("isprintable"), _question("isspace")
    islower, istitle, isupper = _question("islower"), _question("istitle"), _question("isupper")

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return MarkedText.all_marked(repr(self.clean))

    def __len__(self) -> int:
        return len(self.clean)

    def __hash__(self) -> int:
        return hash(self.clean)

    def __contains__(self, part: object, /) -> bool:
        return plain(part) in self.clean

    def __eq__(self, other: object, /) -> bool:
        return bool(self.clean == plain(other))

    def __ne__(self, other: object, /) -> bool:
        return bool(self.clean != plain(other))

    def __lt__(self, other: str, /) -> bool:
        return bool(self.clean < plain(other))

    def __le__(self, other: str, /) -> bool:
        return bool(self.clean <= plain(other))

    def __gt__(self, other: str, /) -> bool:
        return bool(self.clean > plain(other))

    def __ge__(self, other: str, /) -> bool:
        return bool(self.clean >= plain(other))
