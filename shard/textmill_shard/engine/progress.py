"""Whether the step loop of a rank is late, by a limit that follows from the steps that this rank has measured."""

import math
import time
from collections.abc import Callable

# A scheduler that gives a rank no processor for a second is known from crowded machines, whatever the step's size.
SLACK_S = 1.0
# The warm-up step has no long context, and prompt log-probabilities and sampling come on top of its forward pass.
WARM_UP_FACTOR = 10.0
# Steps of real requests have all of that. One that a crowded machine made slow must not raise the limit for good.
SEEN_FACTOR = 3.0


class Progress:
    """The moment until which the step loop must give its next sign of progress.

    The thread of the step loop calls `expect`, `rest` and the measures; any thread reads `overdue_s` and `limit_s`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit_s = math.inf  # until the warm-up step was measured
        self._due_s = math.inf

    @property
    def limit_s(self) -> float:
        """The most seconds between two signs of progress; infinite before the warm-up step was measured."""
        return self._limit_s

    def measure_warm_up(self, step_s: float) -> None:
        """Set the limit by the seconds of the largest step."""
        self._limit_s = SLACK_S + WARM_UP_FACTOR * step_s

    def measure_step(self, step_s: float) -> None:
        """Raise the limit where a step of real requests has taken longer than the warm-up step lets expect."""
        self._limit_s = max(self._limit_s, SLACK_S + SEEN_FACTOR * step_s)

    def expect(self, allowance_s: float = 0.0) -> None:
        """Note a sign of progress. The next one must come within the limit and `allowance_s`."""
        self._due_s = self._clock() + self._limit_s + allowance_s

    def rest(self) -> None:
        """Note that no sign of progress is due, because the loop waits for another rank, which has its own limit."""
        self._due_s = math.inf

    def overdue_s(self) -> float:
        """Return by how many seconds the loop is late, or 0."""
        return max(0.0, self._clock() - self._due_s)
