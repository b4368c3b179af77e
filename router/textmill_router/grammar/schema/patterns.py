"""Patterns of schemas, tried on texts by the engine that enforces them, which takes time in proportion to the text."""

import json
from functools import lru_cache

import llguidance

# A hundredth of what the compiler may take: the check of an answer runs on the event loop.
MAX_LEXER_STATES = 2_000
MAX_PATTERN_FUEL = 50_000
MAX_COMPARED = 6  # patterns of one schema


class PatternTooDear(Exception):
    """The engine does not try the pattern within its limits."""


class Pattern:
    """One pattern, an expression that is searched for in a text."""

    def __init__(self, expression: str) -> None:
        """Raises PatternTooDear for an expression that the engine cannot read or not within its limits."""
        schema = json.dumps({"type": "string", "pattern": expression})
        self._matcher = llguidance.LLMatcher(_bytes(), f"start: %json {schema}", log_level=0, limits=_limits())
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
def pattern(expression: str) -> Pattern:
    """The pattern of an expression; those asked for last are kept. Raises PatternTooDear."""
    return Pattern(expression)


@lru_cache(maxsize=256)
def overlap(expressions: tuple[str, ...]) -> bool:
    """Whether one text could hold two of the expressions; also where the engine cannot tell within its limits."""
    if len(expressions) > MAX_COMPARED:
        return False  # left to the compiler, which says what overlaps
    return any(
        not _exclude(first, second) for index, first in enumerate(expressions) for second in expressions[index + 1 :]
    )


def _exclude(first: str, second: str) -> bool:
    schema = json.dumps({"type": "string", "allOf": [{"pattern": first}, {"pattern": second}]})
    matcher = llguidance.LLMatcher(_bytes(), f"start: %json {schema}", log_level=0, limits=_limits())
    return "Unsatisfiable" in matcher.get_error() or "is empty" in matcher.get_error()


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
