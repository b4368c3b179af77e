"""One stream of the router: the queue of an epoch between the step loop and the gRPC threads."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from queue import Empty, SimpleQueue
from typing import TypeAlias

from textmill_shard.slots.plan import PlanRejection, StepResult


class EndReason(Enum):
    """Why the shard ends a stream."""

    ROUTER_LEFT = "router_left"  # the router closed its side of the stream, or the stream broke
    LEASE = "lease"  # nothing heard from the router for too long
    PLAN_REJECTED = "plan_rejected"
    WRONG_EPOCH = "wrong_epoch"
    BAD_MESSAGE = "bad_message"  # the message is neither a plan nor a heartbeat
    STOPPING = "stopping"
    FAILED = "failed"  # the step loop broke


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The last item of a session, with the reason for the log and for the router."""

    reason: EndReason
    message: str


Outgoing: TypeAlias = StepResult | PlanRejection | StreamEnd


class Session:
    """The items for the router, and the time of the last sign of life.

    The step loop calls `send`, `finish` and `silence_s`, the writer of the stream calls `next_item`, and the reader of
    the stream calls `hear`.
    """

    def __init__(self, epoch: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.epoch = epoch
        self._clock = clock
        self._last_heard_s = clock()
        self._outbox: SimpleQueue[Outgoing] = SimpleQueue()

    def hear(self) -> None:
        """Note that a message has come from the router."""
        self._last_heard_s = self._clock()

    def silence_s(self) -> float:
        """Return the seconds since the last message of the router."""
        return self._clock() - self._last_heard_s

    def send(self, item: StepResult | PlanRejection) -> None:
        """Queue an item for the router."""
        self._outbox.put(item)

    def finish(self, reason: EndReason, message: str) -> None:
        """End the stream, after the items that are in the queue."""
        self._outbox.put(StreamEnd(reason, message))

    def next_item(self, timeout_s: float) -> Outgoing | None:
        """Return the next item for the router, or None when none comes within `timeout_s`."""
        try:
            return self._outbox.get(timeout=max(timeout_s, 0.0))
        except Empty:
            return None
