"""Histograms as plain numbers: an observation costs a bisect and two additions."""

import itertools
from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client.core import HistogramMetricFamily

# 35 geometric steps from 0.15 ms to 145.6 s.
DURATION_BOUNDS_S = tuple(0.0001 * 1.5**k for k in range(1, 36))
NUM_LINEAR_STEPS = 100


def linear_bounds(top: int) -> tuple[float, ...]:
    """A hundred equal steps up to `top`."""
    return tuple(top * step / NUM_LINEAR_STEPS for step in range(1, NUM_LINEAR_STEPS + 1))


class Histogram:
    """Counts of observations at or below each bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        """The state of now, for a scrape."""
        totals = itertools.accumulate(self._counts)
        names = [*(f"{bound:.12g}" for bound in self._bounds), "+Inf"]
        return HistogramMetricFamily(name, text, buckets=list(zip(names, totals, strict=True)), sum_value=self._sum)
