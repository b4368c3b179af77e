"""The status that the Health call answers. The loader and the step loop write it, and any thread reads it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from textmill_shard.engine.progress import Progress
from textmill_shard.slots.plan import Heartbeat


class ShardState(Enum):
    """Where this rank is in its life."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StatusSnapshot:
    """The status at one moment. A writer replaces the whole snapshot, so that readers need no lock."""

    state: ShardState = ShardState.LOADING
    phase: str = "config"  # "config", "weights", "kv_pool", "warmup"; empty once loaded
    progress: float = 0.0  # of the phase, from 0 to 1
    last_step: int = 0  # 0 before the first step
    last_step_s: float = 0.0  # when the last step finished, on the clock of `ShardStatus`
    plan_applied: int = 0
    is_busy: bool = False
    detail: str = ""  # why the shard failed


class ShardStatus:
    """Owner of the snapshot. One thread writes at a time: first the loader, then the step loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._snapshot = StatusSnapshot()
        self._step_began_s = 0.0
        self._num_memory_faults = 0
        self._media_bytes = 0
        self._num_media_encodes = 0
        self.progress = Progress(clock)

    @property
    def snapshot(self) -> StatusSnapshot:
        """The present status."""
        return self._snapshot

    def report_loading(self, phase: str, progress: float) -> None:
        """Note how far a phase of the loading is, from 0 to 1."""
        self._snapshot = replace(self._snapshot, phase=phase, progress=progress)

    def report_ready(self) -> None:
        """Note that the model is loaded."""
        self._snapshot = replace(self._snapshot, state=ShardState.READY, phase="", progress=1.0)

    def report_failure(self, detail: str) -> None:
        """Note that the shard failed, and why."""
        self._snapshot = replace(self._snapshot, state=ShardState.FAILED, detail=detail, is_busy=False)

    def begin_epoch(self) -> None:
        """Forget the numbers of the last step and of the last plan, because a new epoch counts both from 1."""
        self._snapshot = replace(self._snapshot, last_step=0, plan_applied=0)

    def report_plan(self, plan_applied: int) -> None:
        """Note the number of the plan that was applied last."""
        self._snapshot = replace(self._snapshot, plan_applied=plan_applied)

    def begin_step(self) -> None:
        """Mark the shard as busy until `finish_step`. A step that raises ends the process without `finish_step`."""
        self._step_began_s = self._clock()
        self.progress.expect()
        self._snapshot = replace(self._snapshot, is_busy=True)

    def finish_step(self, step: int, plan_applied: int) -> None:
        """Note the number of the step that has finished, and of the last plan applied before it."""
        now_s = self._clock()
        self.progress.measure_step(now_s - self._step_began_s)
        self._snapshot = replace(
            self._snapshot, last_step=step, last_step_s=now_s, plan_applied=plan_applied, is_busy=False
        )

    def report_memory_fault(self) -> None:
        """Note that a step, or a part of one, ran out of memory."""
        self._num_memory_faults += 1

    def report_media_bytes(self, num_bytes: int) -> None:
        """Note the bytes of the images that are kept. Any thread may call this."""
        self._media_bytes = num_bytes

    def report_media_encode(self) -> None:
        """Note that the tower has made the rows of an image."""
        self._num_media_encodes += 1

    def heartbeat(self) -> Heartbeat:
        """Return the heartbeat for the router."""
        snapshot = self._snapshot
        return Heartbeat(
            last_step=snapshot.last_step,
            last_step_age_ms=self.last_step_age_ms(),
            plan_applied=snapshot.plan_applied,
            overdue_ms=self.overdue_ms(),
            num_memory_faults=self._num_memory_faults,
            media_bytes=self._media_bytes,
            num_media_encodes=self._num_media_encodes,
        )

    @property
    def progress_limit_ms(self) -> int:
        """The limit between two signs of progress, in milliseconds; 0 while no step was measured."""
        limit_s = self.progress.limit_s
        return round(limit_s * 1000) if math.isfinite(limit_s) else 0

    def overdue_ms(self) -> int:
        """Return by how many milliseconds the step loop is late, rounded up, or 0."""
        return math.ceil(self.progress.overdue_s() * 1000)

    def last_step_age_ms(self) -> int:
        """Return the milliseconds since the last step finished, and 0 before the first step."""
        snapshot = self._snapshot
        return int((self._clock() - snapshot.last_step_s) * 1000) if snapshot.last_step else 0
