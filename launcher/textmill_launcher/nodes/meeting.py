"""How the ranks of one model begin and end a start together, on one node or on several."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from textmill_launcher.causes import Loss
from textmill_launcher.errors import LaunchError
from textmill_launcher.sockets import free_port


@dataclass(frozen=True, slots=True)
class MeetingPoint:
    """Where launchers meet, and node 0 listens, or where the ranks of one start meet, and rank 0 listens."""

    address: str
    port: int


class StoppedByNode0(Exception):
    """Node 0 ends the service in order, so this node ends too."""


class Meeting(Protocol):
    """The seam between the shards of this node and those of other nodes."""

    counts_restarts: bool
    """Whether this node decides if, and how soon, all ranks start again."""

    async def begin(self) -> MeetingPoint | None:
        """Wait until all nodes may start their ranks, and return where the ranks meet.

        None for a single rank. Raises `LaunchError` when a node does not come or does not fit.
        """
        ...

    def become_ready(self) -> None:
        """Note that the ranks of this start serve."""
        ...

    async def wait_for_loss(self) -> Loss:
        """Return when another node ends this start. Raises `StoppedByNode0`, and the error with which node 0 ended."""
        ...

    async def end(self, loss: Loss) -> Loss:
        """Let the start end on all nodes, and return the loss that came first. The ranks of this node have ended."""
        ...

    async def close(self, error: LaunchError | None) -> None:
        """Tell the other nodes that the service ends: with an error, or in order."""
        ...

    def is_elsewhere_busy(self) -> bool:
        """Whether a rank of another node computes, or waits for a processor or a disk."""
        ...


class OneNode:
    """The meeting of ranks of one machine."""

    counts_restarts = True

    def __init__(self, *, world_size: int, master_addr: str, master_port: int | None) -> None:
        """`master_port` None takes a free port for each start."""
        self._world_size = world_size
        self._master_addr = master_addr
        self._master_port = master_port

    async def begin(self) -> MeetingPoint | None:
        """Return where the ranks meet, or None for one rank."""
        if self._world_size == 1:
            return None
        return MeetingPoint(self._master_addr, self._master_port or free_port(self._master_addr))

    def become_ready(self) -> None:
        """Do nothing."""

    async def wait_for_loss(self) -> Loss:
        """Wait for ever, because there is no other node."""
        await asyncio.Event().wait()
        raise AssertionError("an event that nobody sets")

    async def end(self, loss: Loss) -> Loss:
        """Return the loss."""
        return loss

    async def close(self, error: LaunchError | None) -> None:
        """Do nothing."""

    def is_elsewhere_busy(self) -> bool:
        """Return False."""
        return False
