"""The settings of the scheduler."""

from dataclasses import dataclass

from textmill_router.scheduler.plan import Budget


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What the operator decides. The bounds of `max_waiting` count waiting requests only, not running ones.

    `max_waiting_s` bounds the predicted wait of a new call; None: the wait is not bounded.
    """

    budget: Budget
    max_waiting_requests: int
    max_waiting_tokens: int
    max_waiting_s: float | None = None
    prefix_caching: bool = True
    grant_ahead_tokens: int = 64
    regrant_below_tokens: int = 32
