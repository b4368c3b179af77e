"""The router's process, which is started again when it dies. The shards keep their weights meanwhile."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from textmill_launcher.causes import Ending, describe_code
from textmill_launcher.child_process import ChildProcess
from textmill_launcher.errors import ChildDied
from textmill_launcher.hang_watch import wait_for_router_hang
from textmill_launcher.readiness import wait_for_router
from textmill_launcher.restart_budget import RestartBudget

URGED_ROUTER_GRACE_S = 3.0  # time for the router to tell its clients that their requests will not end

log = logging.getLogger(__name__)


class RouterKeeper:
    """Owns the router's process. The owner runs `run` as a task, ends the task, and then calls `stop`.

    `spawn` starts a router, and `url` is where the router answers.
    """

    def __init__(self, *, url: str, spawn: Callable[[], ChildProcess], budget: RestartBudget) -> None:
        self._url = url
        self._spawn = spawn
        self._budget = budget
        self._router: ChildProcess | None = None
        self._was_ready = asyncio.Event()

    async def wait_ready(self) -> None:
        """Wait until the router has answered `GET /health` with 200 once."""
        await self._was_ready.wait()

    async def run(self) -> None:
        """Start the router, and start it again whenever it ends, for ever.

        Raises `ChildDied` when the router ends before it was ever ready, or when the budget is used up.
        """
        while True:
            self._router = self._spawn()
            loss = await self._watch(self._router)
            delay_s = self._budget.take() if self._was_ready.is_set() else None
            if delay_s is None:
                raise ChildDied(loss.describe(), loss.launcher_exit_code)
            log.warning(
                "%s\n  the router starts again in %.0f s (restart %d of %d in %.0f s)",
                *(loss.describe(), delay_s),
                *(self._budget.num_used, self._budget.max_restarts, self._budget.window_s),
            )
            await asyncio.sleep(delay_s)

    def tell(self, note: str) -> None:
        """Tell the router a note of `router_notes.py`. A router that is not there misses the note."""
        if self._router is not None and self._router.is_running:
            self._router.tell(note)

    async def stop(self, *, grace_s: float, hurry: list["asyncio.Future[None]"]) -> None:
        """End the router, which may let its requests end for `grace_s`.

        As soon as one of `hurry` is done, the router gets only the time to answer its requests with an error.
        """
        router = self._router
        if router is None or not router.is_running:
            return
        if not any(reason.done() for reason in hurry):
            patient = asyncio.create_task(router.stop(grace_s))
            waits: set[asyncio.Future[Any]] = {patient, *hurry}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            patient.cancel()
            await asyncio.gather(patient, return_exceptions=True)
        code = await router.urge(min(grace_s, URGED_ROUTER_GRACE_S))
        log.info("%s %s", router.name, describe_code(code))

    async def _watch(self, router: ChildProcess) -> Ending:
        """Wait until the router ends or hangs, and note when it is ready. A router that hangs is killed."""
        end = asyncio.ensure_future(router.wait())
        ready = asyncio.create_task(wait_for_router(router.name, self._url))
        tasks: list[asyncio.Future[Any]] = [end, ready]
        try:
            await asyncio.wait({end, ready}, return_when=asyncio.FIRST_COMPLETED)
            phase = "starting"
            if not end.done():
                ready.result()
                phase = "serving"
                self._was_ready.set()
                tasks.append(hang := asyncio.create_task(wait_for_router_hang(router, self._url)))
                await asyncio.wait({end, hang}, return_when=asyncio.FIRST_COMPLETED)
                if not end.done():
                    router.kill()
                    return Ending(router.name, await end, phase, router.last_lines, hang.result())
            return Ending(router.name, await end, phase, router.last_lines)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
