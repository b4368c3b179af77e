"""Brings what a step has sampled to the host, in a thread of its own, while the step loop launches the next step."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from textmill_shard.device import claim_device
from textmill_shard.engine.upload import HostArray, pack_tensors, unpack_arrays


class Mark(Protocol):
    """A place in the order of the work of a device."""

    def wait(self) -> None:
        """Wait until the device has done all work before this place."""
        ...

    def ns_since(self, earlier: "Mark") -> int:
        """Return the nanoseconds that the device took from an earlier place. Both places lie behind the device."""
        ...


@dataclass(frozen=True, slots=True)
class HostMark:
    """A mark of a CPU, which has done all work as soon as the work is launched."""

    at_ns: int

    def wait(self) -> None:
        """Return at once."""

    def ns_since(self, earlier: Mark) -> int:
        assert isinstance(earlier, HostMark)
        return self.at_ns - earlier.at_ns


@dataclass(frozen=True, slots=True)
class EventMark:
    """A mark in the stream of a GPU."""

    event: torch.cuda.Event

    def wait(self) -> None:
        self.event.synchronize()

    def ns_since(self, earlier: Mark) -> int:
        assert isinstance(earlier, EventMark)
        elapsed_ms: float = earlier.event.elapsed_time(self.event)
        return round(elapsed_ms * 1e6)


def mark_device(device: torch.device) -> Mark:
    """Return a mark behind all work that was launched so far on the current stream."""
    if device.type != "cuda":
        return HostMark(time.monotonic_ns())
    event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
    event.record()
    return EventMark(event)


@dataclass(frozen=True, slots=True)
class StepRead:
    """The values of a step on the host."""

    arrays: list[HostArray]
    device_ns: int  # from the launch of the step to its end, on the clock of the device


class TokenReader:
    """Reads one step after the other, in the order of `begin`. Only the thread of the step loop calls the reader."""

    def __init__(self, device: torch.device, mark: Callable[[torch.device], Mark] = mark_device) -> None:
        """`mark` makes the marks; tests give marks for which the host waits longer."""
        self._device = device
        self._mark = mark
        # A thread that waits for events without a device of its own would make a context on the first GPU.
        self._thread = ThreadPoolExecutor(1, "token-reader", initializer=claim_device, initargs=(str(device),))

    def mark(self) -> Mark:
        """Return a mark behind all work that was launched so far."""
        return self._mark(self._device)

    def begin(self, tensors: Sequence[torch.Tensor], began: Mark, on_read: Callable[[], None]) -> Future[StepRead]:
        """Start the copy of the tensors, behind the work launched so far, and return what the host will have.

        `began` is the mark before the step. Another thread calls `on_read` when the result is there. The future gets
        the exception of the device where there is one.
        """
        packed = pack_tensors(tensors) if tensors else torch.empty(0, dtype=torch.uint8, device=self._device)
        on_host = packed
        if self._device.type != "cpu":
            on_host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=True)
            on_host.copy_(packed, non_blocking=True)
        ended = self.mark()

        def read() -> StepRead:
            ended.wait()
            return StepRead(unpack_arrays(on_host.numpy(), tensors), ended.ns_since(began))

        reading = self._thread.submit(read)
        reading.add_done_callback(lambda _: on_read())
        return reading

    def close(self) -> None:
        """Let the thread end when it has read what was begun."""
        self._thread.shutdown(wait=False)
