"""Starts the children, waits until they serve, watches them, and stops first the router and then the shards."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from textmill_launcher.causes import Ending, describe_code
from textmill_launcher.child_arguments import (
    ModelFolder,
    ShardPlace,
    child_environment,
    router_command,
    router_environment,
    shard_command,
)
from textmill_launcher.child_name import ChildName
from textmill_launcher.child_process import ChildProcess
from textmill_launcher.devices import count_driver_devices, num_shards
from textmill_launcher.errors import ChildDied, LaunchError, ModelFilesError
from textmill_launcher.logs import ChildOutput
from textmill_launcher.model_files import find_model
from textmill_launcher.readiness import local_url, wait_for_router, wait_for_shard
from textmill_launcher.settings import Settings
from textmill_launcher.sockets import SocketPlaces, free_port, socket_places

SHARD_GRACE_S = 10.0  # short, because without a router a shard has no work to finish
HELPER_GRACE_S = 5.0
URGED_ROUTER_GRACE_S = 3.0  # time for the router to tell its clients that their requests will not end
SHARD_UMASK = 0o077  # keeps other users from a shard's socket since the socket exists

log = logging.getLogger(__name__)


class Stopped(Exception):
    """A signal asked the launcher to end."""


class Supervisor:
    """Owns all children of one launcher."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], output: ChildOutput) -> None:
        self._settings = settings
        self._environ = environ
        self._output = output
        self._stop_wanted = asyncio.Event()
        self._stop_at_once = asyncio.Event()

    async def run(self) -> None:
        """Serve until a signal comes. Raises `LaunchError` when the service cannot start or go on.

        When this returns or raises, all children have ended and the sockets are gone.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)
        with contextlib.suppress(Stopped):
            await self._serve()
        log.info("stopped")

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop_wanted.is_set():
            log.warning("%s again: not waiting for running requests", number.name)
            self._stop_at_once.set()
        else:
            log.info("%s: stopping", number.name)
            self._stop_wanted.set()

    async def _serve(self) -> None:
        began_s = time.monotonic()
        world_size = num_shards(self._settings, count_driver_devices)
        model = await find_model(self._settings, self._environ, self._run_helper)
        log.info("model files: %s (%.1f s)", model.path, time.monotonic() - began_s)
        with socket_places(self._settings.shard_uds_path, world_size) as sockets:
            async with self._children(model, sockets, world_size) as (router, shards):
                url = local_url(self._settings.hostname, self._settings.port)
                readiness = asyncio.gather(
                    *(wait_for_shard(shard.name, sockets.of(rank)) for rank, shard in enumerate(shards)),
                    wait_for_router(router.name, url),
                )
                await self._watch([*shards, router], readiness, phase="starting")
                log.info("ready after %.1f s: %s on %s", time.monotonic() - began_s, model.model_id, url)
                log.info("try: %s", self._example_call(url))
                await self._watch([*shards, router], None, phase="serving")

    @contextlib.asynccontextmanager
    async def _children(
        self, model: ModelFolder, sockets: SocketPlaces, world_size: int
    ) -> AsyncIterator[tuple[ChildProcess, list[ChildProcess]]]:
        """Start shards and router, in this order and without waiting, and stop them when the block is left."""
        settings = self._settings
        meeting_port = (settings.master_port or free_port(settings.master_addr)) if world_size > 1 else None
        environ = child_environment(self._environ, settings)
        shards: list[ChildProcess] = []
        router: ChildProcess | None = None
        try:
            for rank in range(world_size):
                place = ShardPlace(rank, world_size, sockets.of(rank), settings.master_addr, meeting_port)
                command = shard_command(settings, model, place)
                shards.append(self._spawn(ChildName("shard", rank), command, environ, umask=SHARD_UMASK))
            # The router starts now, because it binds its port at once and tells clients the phase of the shards.
            command = router_command(settings, model, sockets.of(0))
            router = self._spawn(ChildName("router"), command, router_environment(self._environ, settings))
            yield router, shards
        finally:
            await self._stop_children(router, shards)

    def _spawn(
        self, name: ChildName, command: Sequence[str], environ: Mapping[str, str], umask: int = -1
    ) -> ChildProcess:
        child = ChildProcess.spawn(name, command, environ, self._output, umask)
        log.info("%s: started, pid %d", name, child.pid)
        log.debug("%s: %s", name, " ".join(command))
        return child

    async def _watch(self, children: Sequence[ChildProcess], goal: "asyncio.Future[Any] | None", phase: str) -> None:
        """Wait for `goal`, or without a goal for ever.

        Raises `Stopped` when a signal comes first, `ChildDied` when a child ends first, and the errors of `goal`.
        """
        stop = asyncio.create_task(self._stop_wanted.wait())
        ends = {asyncio.create_task(child.wait()): child for child in children}
        tasks: set[asyncio.Future[Any]] = {stop, *ends, *([] if goal is None else [goal])}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if stop in done:
                raise Stopped
            for end, child in ends.items():  # shards come before the router, which may end because a shard died
                if end in done:
                    ending = Ending(child.name, end.result(), phase, child.last_lines)
                    raise ChildDied(ending.describe(), ending.launcher_exit_code)
            if goal is not None:
                goal.result()
        finally:
            for task in tasks:
                if not task.done():
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stop_children(self, router: ChildProcess | None, shards: Sequence[ChildProcess]) -> None:
        """Stop the router, which lets running requests end, then all shards at once."""
        if router is not None and router.is_running:
            await self._stop_router(router, can_finish=all(shard.is_running for shard in shards))
        await asyncio.gather(*(self._stop_shard(shard) for shard in shards if shard.is_running))

    async def _stop_router(self, router: ChildProcess, *, can_finish: bool) -> None:
        """End the router.

        While its requests `can_finish` and no second signal comes, the router may let them end. After that the router
        gets the time to answer them with an error.
        """
        if can_finish:
            hurry = asyncio.create_task(self._stop_at_once.wait())
            patient = asyncio.create_task(router.stop(self._settings.graceful_termination_timeout))
            await asyncio.wait({hurry, patient}, return_when=asyncio.FIRST_COMPLETED)
            for task in (hurry, patient):
                task.cancel()
            await asyncio.gather(hurry, patient, return_exceptions=True)
        code = await router.urge(min(self._settings.graceful_termination_timeout, URGED_ROUTER_GRACE_S))
        log.info("%s %s", router.name, describe_code(code))

    async def _stop_shard(self, shard: ChildProcess) -> None:
        """End a shard, at once after a second signal."""
        hurry = asyncio.create_task(self._stop_at_once.wait())
        hurry.add_done_callback(lambda task: None if task.cancelled() else shard.kill())
        try:
            code = await shard.stop(SHARD_GRACE_S)
        finally:
            hurry.cancel()
        log.info("%s %s", shard.name, describe_code(code))

    async def _run_helper(self, name: ChildName, command: Sequence[str], environ: Mapping[str, str]) -> str:
        """Run a download or a conversion to its end, and return the last line of its output.

        Raises `ModelFilesError` when the child fails, and `Stopped` when a signal comes first.
        """
        helper = self._spawn(name, command, environ)
        end = asyncio.ensure_future(helper.wait())
        stop = asyncio.create_task(self._stop_wanted.wait())
        try:
            await asyncio.wait({end, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not end.done():
                raise Stopped
            if end.result() != 0 or not helper.last_stdout_line:
                reason = "\n".join("    " + line for line in helper.last_lines) or "    (it wrote nothing)"
                raise ModelFilesError(f"{name} {describe_code(end.result())}; its last lines:\n{reason}")
            return helper.last_stdout_line
        finally:
            stop.cancel()
            await helper.stop(HELPER_GRACE_S)

    def _example_call(self, url: str) -> str:
        """Return a command line that asks the server something and ends within seconds."""
        key = "" if self._settings.api_key is None else ' -H "Authorization: Bearer $API_KEY"'
        body = '{"inputs":"The capital of France is","parameters":{"max_new_tokens":20,"do_sample":false}}'
        return f"curl {url}/generate -H 'Content-Type: application/json'{key} -d '{body}'"


def serve(settings: Settings, environ: Mapping[str, str], output: ChildOutput) -> int:
    """Run a supervisor to its end. Returns the exit code of the launcher."""

    async def run() -> None:
        await Supervisor(settings, environ, output).run()

    try:
        asyncio.run(run())
    except LaunchError as error:
        log.error("%s", error)
        return error.exit_code
    return os.EX_OK
