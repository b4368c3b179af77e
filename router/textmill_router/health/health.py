"""The server's health: the state now, since when, and one line of the log for each change."""

import logging
import time
from collections.abc import Callable

from textmill_router.health.states import EDGES, ROW_OF, HealthFacts, HealthState, StateRow, next_edge

log = logging.getLogger(__name__)

_LEVELS = {
    HealthState.RECOVERING: logging.WARNING,
    HealthState.DEGRADED: logging.WARNING,
    HealthState.DEAD: logging.ERROR,
}


class Health:
    """Owns the state. Only the event loop's thread calls it.

    `ask` returns the facts of this moment.
    """

    def __init__(self, ask: Callable[[], HealthFacts], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._state = HealthState.STARTING
        self._since_s = clock()

    def look(self) -> StateRow:
        """Follow the edges that the facts open, log each change, and return the row of the state that holds now."""
        facts = self._ask()
        for _ in EDGES:  # the edges have no circle for the same facts, so fewer changes than edges come to an end
            edge = next_edge(self._state, facts)
            if edge is None:
                break
            now_s = self._clock()
            log.log(
                _LEVELS.get(edge.target, logging.INFO),
                "health is %s",
                edge.target.value,
                extra={
                    "was": edge.source.value,
                    "for_s": round(now_s - self._since_s, 3),
                    "because": edge.because,
                },
            )
            self._state, self._since_s = edge.target, now_s
        return ROW_OF[self._state]

    @property
    def since_s(self) -> float:
        """The seconds that the state has lasted."""
        return self._clock() - self._since_s
