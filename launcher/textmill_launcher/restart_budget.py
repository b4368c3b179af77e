"""How often, and how soon, a child that has ended is started again."""

import time
from collections import deque
from collections.abc import Callable

FIRST_BACKOFF_S = 1.0  # before the second restart of a window; the first restart comes at once
MAX_BACKOFF_S = 30.0


class RestartBudget:
    """At most `max_restarts` in any `window_s` seconds, each later than the one before by a wait that doubles."""

    def __init__(self, max_restarts: int, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_restarts = max_restarts
        self.window_s = window_s
        self._clock = clock
        self._restarts_s: deque[float] = deque()  # the times of the restarts that lie in the window

    @property
    def num_used(self) -> int:
        """The number of restarts in the window that ends now."""
        now_s = self._clock()
        while self._restarts_s and now_s - self._restarts_s[0] >= self.window_s:
            self._restarts_s.popleft()
        return len(self._restarts_s)

    def take(self) -> float | None:
        """Use one restart. Returns the seconds to wait before it, or None when the window has no restart left."""
        num_used = self.num_used
        if num_used >= self.max_restarts:
            return None
        self._restarts_s.append(self._clock())
        return 0.0 if num_used == 0 else min(FIRST_BACKOFF_S * 2.0 ** (num_used - 1), MAX_BACKOFF_S)
