"""Log-probabilities as answers show and compare them, whatever the dialect."""

import math

from textmill_router.text.events import GenerationResult


def mean_logprob(result: GenerationResult) -> float:
    """The number by which `best_of` compares sequences; least for a result without tokens, which `max_time` ended."""
    return sum(token.logprob for token in result.tokens) / len(result.tokens) if result.tokens else -math.inf


def shown_logprob(logprob: float | None) -> float | None:
    """Eight digits, as many as a 32-bit float has; None for a number that JSON cannot say."""
    return None if logprob is None or not math.isfinite(logprob) else float(f"{logprob:.8g}")
