"""The best spans, against every pair of tokens tried one by one."""

import numpy as np
import pytest
from textmill_shard.tasks.rows import SpanParams
from textmill_shard.tasks.span_head import best_spans


def params(roles: list[int], *, max_span_tokens: int = 15, max_spans: int = 5) -> SpanParams:
    return SpanParams(np.array(roles, np.uint8), max_span_tokens=max_span_tokens, max_spans=max_spans)


def logits(*values: float) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    return np.array(values, np.float32)


def softmax(values: list[float], roles: list[int]) -> list[float]:
    weights = [float(np.exp(value)) if role else 0.0 for value, role in zip(values, roles, strict=True)]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("seed", range(20))
def test_spans_are_the_largest_products(seed: int) -> None:
    random = np.random.default_rng(seed)
    num_tokens = int(random.integers(2, 12))
    starts, ends = random.normal(size=(2, num_tokens)).astype(np.float32) * 3
    roles = [1, *random.choice([0, 2, 2], size=num_tokens - 2).tolist(), 2]
    longest, most = int(random.integers(1, 14)), int(random.integers(1, 12))
    found = best_spans(starts, ends, params(roles, max_span_tokens=longest, max_spans=most))
    start_p, end_p = softmax(starts.tolist(), roles), softmax(ends.tolist(), roles)
    inside = [place for place in range(num_tokens) if roles[place] == 2]
    pairs = [(first, last) for first in inside for last in inside if first <= last < first + longest]
    expected = sorted(((start_p[first] * end_p[last], first, last) for first, last in pairs), key=lambda each: -each[0])
    assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == [
        (first, last) for _, first, last in expected[:most]
    ]
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected[:most]], rtol=1e-5)
    assert found.null_score == pytest.approx(start_p[0] * end_p[0], rel=1e-5)


def test_spans_of_score_zero_are_left_out() -> None:
    """A logit that is 200 lower than the best one has the probability 0 in float32."""
    found = best_spans(logits(0, 200, 0, 0), logits(0, 0, 0, 200), params([0, 2, 2, 2]))
    assert (found.starts.tolist(), found.ends.tolist()) == ([1], [3])
    assert found.null_score == 0.0


def test_no_span_is_found_where_the_end_stands_before_the_start() -> None:
    found = best_spans(logits(0, 0, 0, 200), logits(0, 200, 0, 0), params([1, 2, 2, 2]))
    assert found.starts.tolist() == []


def test_the_earlier_of_two_equal_spans_comes_first() -> None:
    found = best_spans(logits(5, 0, 5), logits(5, 0, 5), params([2, 0, 2], max_span_tokens=1, max_spans=1))
    assert found.starts.tolist() == [0]
