"""How long the shards of one engine loop are away, and for how long they will be, as far as the loop can tell."""

from collections.abc import Callable

from textmill_router.metrics.histogram import Histogram

# Of a router that found its shards ready, and so has measured neither a start nor a restart of theirs.
FIRST_GUESS_S = 10.0


class Recovery:
    """The clock of losses and recoveries. A recovery lasts from the loss of a stream until the next Hello.

    `clock` gives seconds. Each recovery is observed by `durations`. Until the first recovery, the time from the loop's
    start until its first Hello is the best guess, because a restart does the work of a start.
    """

    def __init__(self, clock: Callable[[], float], durations: Histogram) -> None:
        self._clock = clock
        self._durations = durations
        self._lost_s: float | None = clock()
        self._usual_s = 0.0
        self._is_first = True

    def lose(self) -> None:
        """Note that the stream is lost."""
        self._lost_s = self._clock()

    def end(self) -> None:
        """Note that the shards serve."""
        if self._lost_s is None:
            return
        self._usual_s = self._clock() - self._lost_s
        if self._is_first:
            self._usual_s = max(self._usual_s, FIRST_GUESS_S)
        else:
            self._durations.observe(self._usual_s)
        self._is_first = False
        self._lost_s = None

    @property
    def away_s(self) -> float:
        """The seconds since the loss, or 0 while the shards serve."""
        return 0.0 if self._lost_s is None else self._clock() - self._lost_s

    @property
    def remaining_s(self) -> float:
        """The seconds until the shards should serve again by the last recovery, or 0 while they serve.

        A recovery that takes longer than the last one counts as half done.
        """
        if self._lost_s is None:
            return 0.0
        away_s = self.away_s
        return self._usual_s - away_s if away_s < self._usual_s else max(away_s, 1.0)
