"""The settings of the scheduler."""

from dataclasses import dataclass

from textmill_router.scheduler.plan import Budget


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What the operator decides. The two `max_waiting` bounds count waiting requests only, not running ones."""

    budget: Budget
    max_waiting_requests: int
    max_waiting_tokens: int
    prefix_caching: bool = True
    grant_ahead_tokens: int = 64
    regrant_below_tokens: int = 32
