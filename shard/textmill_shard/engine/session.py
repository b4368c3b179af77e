"""One stream of the router: an epoch's queues between the gRPC threads and the step loop."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from queue import Empty, SimpleQueue
from typing import TypeAlias

from textmill_shard.slots.plan import PlanRejection, StepResult


class EndReason(Enum):
    """Why the shard ends a stream."""

    ROUTER_LEFT = "router_left"  # it closed its side or broke off
    LEASE = "lease"  # nothing heard from the router for too long
    PLAN_REJECTED = "plan_rejected"
    WRONG_EPOCH = "wrong_epoch"
    STOPPING = "stopping"
    FAILED = "failed"  # the step loop broke


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The last item of a session."""

    reason: EndReason
    message: str


Outgoing: TypeAlias = StepResult | PlanRejection | StreamEnd


class Session:
    """Written by the step loop (`send`, `finish`), drained by the writer of the stream, touched by its reader."""

    def __init__(self, epoch: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.epoch = epoch
        self._clock = clock
        self._last_heard_s = clock()
        self._outbox: SimpleQueue[Outgoing] = SimpleQueue()

    def hear(self) -> None:
        """Note that something came from the router."""
        self._last_heard_s = self._clock()

    def silence_s(self) -> float:
        """Seconds since something came from the router."""
        return self._clock() - self._last_heard_s

    def send(self, item: StepResult | PlanRejection) -> None:
        self._outbox.put(item)

    def finish(self, reason: EndReason, message: str) -> None:
        """End the stream after what was sent before."""
        self._outbox.put(StreamEnd(reason, message))

    def next_item(self, timeout_s: float) -> Outgoing | None:
        """The next item for the router, None when there was none in time."""
        try:
            return self._outbox.get(timeout=max(timeout_s, 0.0))
        except Empty:
            return None
