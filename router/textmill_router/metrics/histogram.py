"""Histograms as plain numbers, because an observation must cost no more than a bisect and two additions."""

import itertools
from bisect import bisect_left
from collections.abc import Sequence

# 35 geometric steps from 0.15 ms to 145.6 s.
DURATION_BOUNDS_S = tuple(0.0001 * 1.5**k for k in range(1, 36))
NUM_LINEAR_STEPS = 100


def linear_bounds(top: int) -> tuple[float, ...]:
    """Return the upper bounds of a hundred equal steps from 0 to `top`."""
    return tuple(top * step / NUM_LINEAR_STEPS for step in range(1, NUM_LINEAR_STEPS + 1))


class Histogram:
    """Counts of observations at or below each bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `times` observations of one value."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    @property
    def sum(self) -> float:
        """The sum of all observations."""
        return self._sum

    def buckets(self) -> list[tuple[str, float]]:
        """Return each bound as text, with the number of observations at or below the bound.

        The last bound is `+Inf`, whose number is the number of all observations.
        """
        totals = itertools.accumulate(self._counts)
        names = [*(f"{bound:.12g}" for bound in self._bounds), "+Inf"]
        return list(zip(names, totals, strict=True))
