"""Permits, of which each sequence of a call needs one, and of which none is given out while the server leaves."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from textmill_router.errors import Overloaded, Recovering, RetryLater, ShuttingDown
from textmill_router.http.api_keys import ANYBODY, Caller

_MAX_RETRY_AFTER_S = 60
_SPEED_WEIGHT = 0.1  # the weight of the newest interval in the running mean


class Permits:
    """Counts permits. Only the event loop's thread calls it."""

    def __init__(
        self,
        max_concurrent: int,
        clock: Callable[[], float] = time.monotonic,
        on_close: Callable[[], None] = lambda: None,
        back_in_s: Callable[[], float | None] = lambda: None,
        *,
        unit: str = "sequences",
        flag: str = "--max-concurrent-requests",
    ) -> None:
        """`back_in_s` returns in how many seconds lost shards should serve again, or None while they serve.

        `unit` is what needs a permit, and `flag` sets how many there are.
        """
        self._unit, self.flag = unit, flag
        self._max_concurrent = max_concurrent
        self._clock = clock
        self._on_close = on_close
        self._back_in_s = back_in_s
        self._num_open = max_concurrent - max_concurrent // 4  # the others are kept for callers below their share
        self._held = 0
        self._held_by: dict[str, int] = {}  # permits by the name of the caller
        self._is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_change_s = 0.0  # the time when a permit last came back, or when the first was given out
        self._release_interval_s: float | None = None  # running mean, None before the first interval

    @property
    def held(self) -> int:
        """The number of permits that are given out."""
        return self._held

    @property
    def is_full(self) -> bool:
        """Whether the next call gets no permit."""
        return self._held >= self._max_concurrent

    @property
    def has_room(self) -> bool:
        """Whether at least a quarter of the permits is free, so that a full server is told from a busy one."""
        return 4 * self._held <= 3 * self._max_concurrent

    @property
    def is_closed(self) -> bool:
        """Whether new calls are refused."""
        return self._is_closed

    def close(self) -> None:
        """Refuse all calls from now on. Calls that run keep their permits."""
        self._is_closed = True
        self._on_close()

    async def wait_idle(self) -> None:
        """Wait until no permit is given out. The caller sets the deadline."""
        await self._idle.wait()

    @contextmanager
    def hold(self, count: int, caller: Caller = ANYBODY) -> Iterator[None]:
        """Hold `count` permits, which come back however the block is left. Raises what `check_room` raises."""
        self.check_room(count, caller)
        if self._held == 0:
            self._last_change_s = self._clock()  # a time in which nothing ran says nothing of the speed
        self._held += count
        self._held_by[caller.name] = self._held_by.get(caller.name, 0) + count
        self._idle.clear()
        try:
            yield
        finally:
            self._held -= count
            self._held_by[caller.name] -= count
            if self._held == 0:
                self._idle.set()
            self._note_release(count)

    def check_room(self, count: int, caller: Caller = ANYBODY) -> None:
        """Raise Overloaded, Recovering or ShuttingDown if `hold` would. Takes nothing."""
        self.check_open()
        if caller.share < 1.0:
            self._check_share(count, caller)
        if self._held + count > self._max_concurrent:
            raise self.overloaded(
                f"Model is overloaded: {self._held} of {self._max_concurrent} {self._unit} are in work and this "
                f"request needs {count} more ({self.flag})"
            )

    def most_for(self, caller: Caller) -> int:
        """The most permits that one call of this caller can ever get."""
        of_share = int(caller.share * self._max_concurrent)
        return self._max_concurrent if caller.share == 1.0 else max(of_share, self._num_open)

    def _check_share(self, count: int, caller: Caller) -> None:
        """Keep the last quarter of the permits for callers that hold less than their share of all permits."""
        held_by_caller = self._held_by.get(caller.name, 0)
        is_over_share = held_by_caller + count > caller.share * self._max_concurrent
        if is_over_share and self._held + count > self._num_open:
            raise self.overloaded(
                f"Model is overloaded: {self._held} of {self._max_concurrent} {self._unit} are in work, "
                f"{held_by_caller} of them for this API key, which is its share; the last {self._max_concurrent // 4} "
                f"are kept for others ({self.flag})"
            )

    def check_open(self) -> None:
        """Raise ShuttingDown if the server is leaving."""
        if self._is_closed:
            raise ShuttingDown(
                "the server is shutting down; try again later", retry_after_s=self._time_to_free(self._held)
            )

    def overloaded(self, message: str) -> RetryLater:
        """Return the refusal, with the time in which half of the permits should come back at the recent speed.

        While the shards are away, nothing comes back before them.
        """
        back_in_s = self._back_in_s()
        if back_in_s is not None:
            wait_s = max(1, math.ceil(back_in_s))
            text = f"{message}, and the shards start again; try again in {wait_s} s"
            return Recovering(text, retry_after_s=wait_s)
        retry_after_s = self._time_to_free(max(1, self._held // 2))
        return Overloaded(f"{message}; try again in {retry_after_s} s", retry_after_s=retry_after_s)

    def _time_to_free(self, count: int) -> int:
        """Return the whole seconds in which so many permits should come back, at least 1."""
        waited_s = self._clock() - self._last_change_s if self._held else 0.0
        # Before the first permit has come back, and when permits stop coming back, the time so far is the best guess.
        expected_s = max(waited_s, (self._release_interval_s or 0.0) * count)
        return max(1, min(_MAX_RETRY_AFTER_S, math.ceil(expected_s)))

    def _note_release(self, count: int) -> None:
        now = self._clock()
        interval_s = (now - self._last_change_s) / count
        if self._release_interval_s is None:
            self._release_interval_s = interval_s
        else:
            self._release_interval_s += _SPEED_WEIGHT * (interval_s - self._release_interval_s)
        self._last_change_s = now
