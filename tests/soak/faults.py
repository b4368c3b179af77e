"""The faults of a soak, drawn from a seed: processes that are killed, stopped for a while, or stopped for good."""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random

import psutil
from textmill_launcher.child_name import ChildName

from tests.soak.mill import Mill, now_s

ROUTER = ChildName("router")
ROUTER_BACK_S = 20.0  # a client may see a reset so long after the router was killed, because the new one must start


class Faults:
    """Draws a fault, and makes it. `counts` counts the faults by kind."""

    def __init__(self, mill: Mill, seed: int) -> None:
        self._mill = mill
        self._rng = Random(seed)
        self.counts: Counter[str] = Counter()
        self._kinds: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("a rank is killed", self._kill_shard),
            ("a rank is killed", self._kill_shard),
            ("a rank hangs", self._stop_shard),
            ("a rank is stopped for a moment", self._pause_shard),
            ("the router is killed", self._kill_router),
            ("the router is stopped for a moment", self._pause_router),
        ]

    async def make(self) -> None:
        """Make one fault, if its process is alive."""
        kind, act = self._rng.choice(self._kinds)
        with contextlib.suppress(psutil.NoSuchProcess):
            await act()
            self.counts[kind] += 1

    def _shard(self) -> psutil.Process:
        name = self._rng.choice(self._mill.shard_names)
        return self._living(name)

    def _living(self, name: ChildName) -> psutil.Process:
        process = self._mill.process(name)
        if process is None:
            raise psutil.NoSuchProcess(0)
        return process

    async def _kill_shard(self) -> None:
        self._shard().send_signal(signal.SIGKILL)

    async def _stop_shard(self) -> None:
        self._shard().send_signal(signal.SIGSTOP)  # for good: the launcher's code has to find and kill it

    async def _pause_shard(self) -> None:
        shard = self._shard()
        shard.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self._rng.uniform(0.05, 0.4))
        shard.send_signal(signal.SIGCONT)

    async def _kill_router(self) -> None:
        router = self._living(ROUTER)
        self._mill.router_faults.append((now_s(), now_s() + ROUTER_BACK_S))
        router.send_signal(signal.SIGKILL)

    async def _pause_router(self) -> None:
        router = self._living(ROUTER)
        # The keeper kills a router that it finds stopped twice, so a client may see a reset.
        self._mill.router_faults.append((now_s(), now_s() + ROUTER_BACK_S))
        router.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self._rng.uniform(0.2, 3.0))
        router.send_signal(signal.SIGCONT)
