"""Expressions of ECMA-262 with look-around, tried on texts by an engine that can take for ever, under a time limit."""

import re
from collections.abc import Iterator

import regex

MAX_LENGTH = 2_000  # characters of an expression
TIMEOUT_S = 0.02  # of one trial: the check of an answer runs on the event loop
_OUTSIDE = {"d": "[0-9]", "w": "[A-Za-z0-9_]", "D": "[^0-9]", "W": "[^A-Za-z0-9_]", "<": "<", ">": ">"}
_INSIDE = {"d": "0-9", "w": "A-Za-z0-9_"}


class PatternTooDear(Exception):
    """An engine does not try the pattern within its limits."""


class NoPattern(Exception):
    """A text is no regular expression; the text of the exception says why."""


class BacktrackingPattern:
    """One pattern, an expression that is searched for in a text."""

    def __init__(self, expression: str) -> None:
        """Raises NoPattern."""
        if len(expression) > MAX_LENGTH:
            raise NoPattern(f"it has more than {MAX_LENGTH} characters")
        try:
            self._compiled = regex.compile("".join(_translated(expression)), regex.V0)
        except (regex.error, ValueError, OverflowError, RecursionError) as error:
            raise NoPattern(str(error)) from None

    def is_in(self, text: str) -> bool:
        """Whether the expression is found. Raises PatternTooDear after `TIMEOUT_S`."""
        try:
            return self._compiled.search(text, timeout=TIMEOUT_S) is not None
        except TimeoutError:
            raise PatternTooDear from None


def _translated(expression: str) -> Iterator[str]:
    """Yield the parts of an expression as the engine writes them.

    In ECMA-262 `$` is the end of the text alone, digits and letters of words are those of ASCII, and an escaped angle
    bracket is that bracket.
    """
    is_inside = False
    for found in re.finditer(r"\\k<(\w+)>|\\.|.", expression, re.DOTALL):
        part = found.group()
        if found.group(1):
            yield f"(?P={found.group(1)})"
            continue
        if part[0] == "\\" and len(part) == 2:
            yield (_INSIDE if is_inside else _OUTSIDE).get(part[1], part)
            continue
        if is_inside:
            is_inside = part != "]"
            yield "\\[" if part == "[" else part
            continue
        is_inside = part == "["
        yield r"\Z" if part == "$" else part
