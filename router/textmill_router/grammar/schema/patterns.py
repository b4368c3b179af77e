"""Patterns of schemas, tried on texts by the engine that enforces them, which takes time in proportion to the text.

An expression that this engine cannot read, because of look-around or an end in its middle, is tried by an engine that
reads all of ECMA-262's expressions and that goes back and forth in the text; such a trial has a time limit.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import llguidance

from textmill_router.grammar.schema.backtracking import BacktrackingPattern, PatternTooDear

# A hundredth of what the compiler may take: the check of an answer runs on the event loop.
MAX_LEXER_STATES = 2_000
MAX_PATTERN_FUEL = 50_000
MAX_COMPARED = 24  # patterns of one schema
# Characters, classes and counts alone: the engine reads each such expression.
_COUNT = r"(?:[*+?]|\{\d{1,3}(?:,\d{0,3})?\})?"
_PIECE = r"(?:[^\\()\[\]{}*+?|^$]|\\[dDwWsS./\-_@:]|\[\^?[\w./@:%+~ ,-]*[\w./@:%+~ ,]\])"
_PLAIN = re.compile(rf"\^?(?:{_PIECE}{_COUNT})*\$?")


class TextPattern(Protocol):
    """An expression that is searched for in a text."""

    def is_in(self, text: str) -> bool:
        """Whether the expression is found. Raises PatternTooDear."""
        ...


class Pattern:
    """One pattern, an expression that is searched for in a text."""

    def __init__(self, expression: str) -> None:
        """Raises PatternTooDear for an expression that the engine cannot read or not within its limits."""
        self._matcher = _matcher({"type": "string", "pattern": expression})
        if self._matcher.get_error():
            raise PatternTooDear

    def is_in(self, text: str) -> bool:
        """Whether the expression is found. Raises PatternTooDear."""
        matcher = self._matcher.deep_copy()
        written = list(json.dumps(text, ensure_ascii=False).encode("utf-8", "replace"))
        num_taken = matcher.try_consume_tokens(written)
        if matcher.get_error():
            raise PatternTooDear
        return num_taken == len(written) and matcher.is_accepting()


@lru_cache(maxsize=256)
def pattern(expression: str) -> TextPattern:
    """The pattern of an expression; those asked for last are kept. Raises PatternTooDear."""
    return Pattern(expression) if is_readable(expression) else BacktrackingPattern(expression)


@lru_cache(maxsize=4096)
def is_readable(expression: str) -> bool:
    """Whether the engine that enforces patterns knows all that the expression says."""
    if _PLAIN.fullmatch(expression):
        return True
    error = _matcher({"type": "string", "pattern": expression}).get_error()
    return not ("regex parse error" in error or "lookaround" in error)


@lru_cache(maxsize=256)
def overlap(expressions: tuple[str, ...]) -> bool:
    """Whether one text could hold two of the expressions; also where the engine cannot tell within its limits."""
    if len(expressions) > MAX_COMPARED:
        return True
    return bool(_matcher({"type": "object", "patternProperties": dict.fromkeys(expressions, True)}).get_error())


@lru_cache(maxsize=1024)
def _is_unmatched(schema_text: str) -> bool:
    error = _matcher(json.loads(schema_text)).get_error()
    return "Unsatisfiable" in error or "is empty" in error


def is_unmatched_text(keywords: Mapping[str, object]) -> bool:
    """Whether no text has the lengths, the pattern and the format; not where the engine cannot tell in its limits."""
    if len(keywords) < 2:
        return False  # a pattern alone is left to the compiler
    return _is_unmatched(json.dumps({"type": "string", **keywords}, sort_keys=True))


def _matcher(schema: dict[str, object]) -> llguidance.LLMatcher:
    return llguidance.LLMatcher(_bytes(), f"start: %json {json.dumps(schema)}", log_level=0, limits=_limits())


@lru_cache(maxsize=1)
def _bytes() -> llguidance.LLTokenizer:
    """A vocabulary of bytes, whose ids are the bytes."""
    return llguidance.LLTokenizer("byte")


def _limits() -> llguidance.LLParserLimits:
    return llguidance.LLParserLimits(
        max_lexer_states=MAX_LEXER_STATES,
        initial_lexer_fuel=MAX_PATTERN_FUEL,
        step_lexer_fuel=MAX_PATTERN_FUEL,
        verbose_errors=False,
    )
