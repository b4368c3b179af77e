"""Log-probabilities as the answers of all dialects show and compare them."""

import math

from textmill_router.text.events import GenerationResult


def mean_logprob(result: GenerationResult) -> float:
    """Return the number by which `best_of` compares sequences.

    The number is the least of all for a result without tokens, which `max_time` has ended.
    """
    return sum(token.logprob for token in result.tokens) / len(result.tokens) if result.tokens else -math.inf


def shown_logprob(logprob: float | None) -> float | None:
    """Return eight digits, as many as a 32-bit float has, or None for a number that JSON cannot hold."""
    return None if logprob is None or not math.isfinite(logprob) else float(f"{logprob:.8g}")
