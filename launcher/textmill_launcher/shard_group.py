"""The shards of one model on this machine: all ranks start together, and all start again when one of them is lost."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from textmill_launcher.causes import Ending, Loss, describe_code
from textmill_launcher.child_arguments import ShardPlace
from textmill_launcher.child_process import ChildProcess
from textmill_launcher.child_watch import wait_for_an_end
from textmill_launcher.errors import ChildDied
from textmill_launcher.hang_watch import is_process_busy, wait_for_hang
from textmill_launcher.load_watch import wait_for_idle_load
from textmill_launcher.nodes.meeting import Meeting, MeetingPoint
from textmill_launcher.readiness import wait_for_shard
from textmill_launcher.restart_budget import RestartBudget
from textmill_launcher.router_notes import shards_given_up, shards_lost
from textmill_launcher.sockets import SocketPlaces

SHARD_GRACE_S = 10.0  # short, because without a router a shard has no work to finish
# A restart finds the files in the page cache, and may still meet a crowded machine.
LOAD_SLACK_S = 60.0
LOAD_FACTOR = 4.0
MAX_KILLED_STARTS = 2  # so often in a row a signal may end the first start, before the start counts as hopeless

log = logging.getLogger(__name__)


class ShardGroup:
    """Owns the processes of all ranks of this machine. The owner runs `run` as a task, ends it, and then calls `stop`.

    `spawn_rank` starts the process of one rank. `replica` is the number of this group among those of its model. `ranks`
    are the ranks of this machine among the `world_size` of all nodes, and `meeting` begins and ends each start on all
    nodes. Each start uses the same sockets, so that a router finds the new rank 0 where the old one was. `tell_router`
    gets a note of each loss.
    """

    def __init__(
        self,
        *,
        replica: int = 0,
        ranks: range,
        world_size: int,
        sockets: SocketPlaces,
        meeting: Meeting,
        spawn_rank: Callable[[ShardPlace], ChildProcess],
        budget: RestartBudget,
        tell_router: Callable[[str], None] = lambda note: None,
    ) -> None:
        self._replica = replica
        self._ranks = ranks
        self._world_size = world_size
        self._sockets = sockets
        self._meeting = meeting
        self._spawn_rank = spawn_rank
        self._budget = budget
        self._tell_router = tell_router
        self._shards: list[ChildProcess] = []
        self._was_ready = asyncio.Event()
        self._num_killed_starts = 0
        self._load_limit_s: float | None = None  # of a restart; None for the first start, whose length nobody knows

    @property
    def was_ready(self) -> bool:
        """Whether the group has been ready once."""
        return self._was_ready.is_set()

    async def wait_ready(self) -> None:
        """Wait until the group has been ready once."""
        await self._was_ready.wait()

    async def run(self) -> None:
        """Start the ranks, and start them again whenever one is lost, for ever.

        Raises `ChildDied` when a restart would be vain or when the budget is used up, and what `Meeting` raises.
        """
        while True:
            point = await self._meeting.begin()
            began_s = time.monotonic()
            self._start(point)
            loss = await self._watch(began_s)
            await self._end_ranks()
            loss = await self._meeting.end(loss)
            if not self._meeting.counts_restarts:
                log.warning("%s\n  node 0 decides whether the group starts again", loss.describe())
                continue
            try:
                delay_s = self._take_restart(loss)
            except ChildDied:
                self._tell_router(shards_given_up(self._replica, loss))
                raise
            self._tell_router(shards_lost(self._replica, loss))
            log.warning(
                "%s\n  the group starts again in %.0f s (restart %d of %d in %.0f s)",
                *(loss.describe(), delay_s),
                *(self._budget.num_used, self._budget.max_restarts, self._budget.window_s),
            )
            await asyncio.sleep(delay_s)

    async def stop(self, hurry: asyncio.Event) -> None:
        """End all ranks at once by SIGTERM, and by SIGKILL after `SHARD_GRACE_S` or as soon as `hurry` is set."""
        await asyncio.gather(*(_stop(shard, hurry) for shard in self._shards if shard.is_running))

    def _start(self, point: MeetingPoint | None) -> None:
        self._shards = []
        for local_rank, rank in enumerate(self._ranks):
            socket = self._sockets.of(local_rank)
            socket.unlink(missing_ok=True)  # a killed shard leaves its socket, which would look like a living shard
            place = ShardPlace(
                rank=rank,
                world_size=self._world_size,
                local_rank=local_rank,
                local_world_size=len(self._ranks),
                socket=socket,
                master_addr="" if point is None else point.address,
                master_port=None if point is None else point.port,
                replica=self._replica,
            )
            self._shards.append(self._spawn_rank(place))

    async def _watch(self, began_s: float) -> Loss:
        """Wait until a rank is lost, and log when all ranks are ready."""
        is_ready = asyncio.Event()
        loss = asyncio.create_task(self._wait_for_loss(is_ready))
        ready = asyncio.gather(
            *(wait_for_shard(shard.name, self._sockets.of(number)) for number, shard in enumerate(self._shards))
        )
        idle = asyncio.create_task(self._wait_for_idle_load())
        tasks: Sequence[asyncio.Future[Any]] = (loss, ready, idle)
        try:
            await asyncio.wait(tasks, timeout=self._load_limit_s, return_when=asyncio.FIRST_COMPLETED)
            if loss.done():
                return loss.result()
            if not ready.done() and idle.done():
                return await self._kill(self._shards[0], idle.result(), "starting")
            if not ready.done():
                return await self._kill(
                    self._shards[0], f"has not loaded within {self._load_limit_s:.0f} s", "starting"
                )
            if ready.exception() is None:
                self._become_ready(time.monotonic() - began_s)
                is_ready.set()
            idle.cancel()
            # A rank that has told its failure ends by itself.
            return await loss
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_for_idle_load(self) -> str:
        """Return why the ranks hang while they load. Waits for ever where a rank may wait for ranks of other nodes."""
        if len(self._ranks) < self._world_size:
            await asyncio.Event().wait()
        return await wait_for_idle_load(self._shards)

    async def _wait_for_loss(self, is_ready: asyncio.Event) -> Loss:
        """Wait until a rank ends or hangs, or another node ends the start. A rank that hangs is killed."""
        end = asyncio.create_task(wait_for_an_end(self._shards))
        elsewhere = asyncio.create_task(self._meeting.wait_for_loss())
        hangs = {
            asyncio.create_task(
                wait_for_hang(shard, self._sockets.of(number), is_ready, self._are_others_busy if rank == 0 else None)
            ): shard
            for number, (rank, shard) in enumerate(zip(self._ranks, self._shards, strict=True))
        }
        tasks: Sequence[asyncio.Task[Any]] = (end, elsewhere, *hangs)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            phase = "serving" if is_ready.is_set() else "starting"
            if end.done():
                child = end.result()
                return Ending(child.name, await child.wait(), phase, child.last_lines, at_s=_end_time(child))
            if elsewhere.done():
                return elsewhere.result()
            hang, shard = next((hang, shard) for hang, shard in hangs.items() if hang.done())
            return await self._kill(shard, hang.result(), phase)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _kill(self, shard: ChildProcess, hang: str, phase: str) -> Ending:
        last_lines = shard.last_lines
        shard.kill()
        return Ending(shard.name, await shard.wait(), phase, last_lines, hang, _end_time(shard))

    def _are_others_busy(self) -> bool:
        """Whether a rank other than rank 0 computes, or waits for a processor or a disk."""
        return any(is_process_busy(shard.pid) for shard in self._shards[1:]) or self._meeting.is_elsewhere_busy()

    def _become_ready(self, load_s: float) -> None:
        self._num_killed_starts = 0
        self._meeting.become_ready()
        if self._was_ready.is_set():
            log.info("shards: ready again after %.1f s", load_s)
        else:
            self._load_limit_s = LOAD_SLACK_S + LOAD_FACTOR * load_s
        self._was_ready.set()

    def _take_restart(self, loss: Loss) -> float:
        """Return the seconds to wait before the next start. Raises `ChildDied` when there must be none.

        A first start that a shard itself gives up (a bad flag, a bad model) would fail again. A first start that is
        ended by a signal is tried once more.
        """
        if not self._was_ready.is_set():
            self._num_killed_starts += 1
            if loss.gave_up or self._num_killed_starts >= MAX_KILLED_STARTS:
                raise ChildDied(loss.describe(), loss.launcher_exit_code)
        delay_s = self._budget.take()
        if delay_s is None:
            text = loss.describe()
            if self._budget.max_restarts:
                text += (
                    f"\n  no further restart: {self._budget.max_restarts} in {self._budget.window_s:g} s are used up "
                    "(--max-restarts, --restart-window)"
                )
            raise ChildDied(text, loss.launcher_exit_code)
        return delay_s

    async def _end_ranks(self) -> None:
        """Kill the ranks that are left, which SIGTERM cannot end while they wait for the lost rank."""
        for shard in self._shards:
            shard.kill()
        await asyncio.gather(*(shard.wait() for shard in self._shards))


def _end_time(child: ChildProcess) -> float:
    assert child.ended_s is not None, "the child has ended"
    return child.ended_s


async def _stop(shard: ChildProcess, hurry: asyncio.Event) -> None:
    hurried = asyncio.create_task(hurry.wait())
    hurried.add_done_callback(lambda task: None if task.cancelled() else shard.kill())
    try:
        code = await shard.stop(SHARD_GRACE_S)
    finally:
        hurried.cancel()
    log.info("%s %s", shard.name, describe_code(code))
