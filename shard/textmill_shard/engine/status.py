"""What Health tells: written by the loader and the step loop, read by other threads at any time."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from textmill_shard.slots.plan import Heartbeat


class ShardState(Enum):
    """Where this rank is in its life."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StatusSnapshot:
    """The status at one moment; replaced whole, so readers need no lock."""

    state: ShardState = ShardState.LOADING
    phase: str = "config"  # "config", "weights", "kv_pool", "warmup"; empty once loaded
    progress: float = 0.0  # 0 .. 1 of the phase
    last_step: int = 0  # 0 = none yet
    last_step_s: float = 0.0  # when it finished, on the clock of the status
    plan_applied: int = 0
    is_busy: bool = False
    detail: str = ""  # reason of the failure


class ShardStatus:
    """Owner of the snapshot. One thread writes at a time: first the loader, then the step loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._snapshot = StatusSnapshot()

    @property
    def snapshot(self) -> StatusSnapshot:
        return self._snapshot

    def report_loading(self, phase: str, progress: float) -> None:
        self._snapshot = replace(self._snapshot, phase=phase, progress=progress)

    def report_ready(self) -> None:
        self._snapshot = replace(self._snapshot, state=ShardState.READY, phase="", progress=1.0)

    def report_failure(self, detail: str) -> None:
        self._snapshot = replace(self._snapshot, state=ShardState.FAILED, detail=detail, is_busy=False)

    def begin_epoch(self) -> None:
        """Steps and plans are numbered anew."""
        self._snapshot = replace(self._snapshot, last_step=0, plan_applied=0)

    def report_plan(self, plan_applied: int) -> None:
        self._snapshot = replace(self._snapshot, plan_applied=plan_applied)

    def begin_step(self) -> None:
        """Busy until `finish_step`; a step that breaks ends the process."""
        self._snapshot = replace(self._snapshot, is_busy=True)

    def finish_step(self, step: int, plan_applied: int) -> None:
        self._snapshot = replace(
            self._snapshot, last_step=step, last_step_s=self._clock(), plan_applied=plan_applied, is_busy=False
        )

    def heartbeat(self) -> Heartbeat:
        """The life sign for the router."""
        snapshot = self._snapshot
        return Heartbeat(
            last_step=snapshot.last_step, last_step_age_ms=self.last_step_age_ms(), plan_applied=snapshot.plan_applied
        )

    def last_step_age_ms(self) -> int:
        """Milliseconds since the last step finished, 0 before the first."""
        snapshot = self._snapshot
        return int((self._clock() - snapshot.last_step_s) * 1000) if snapshot.last_step else 0
