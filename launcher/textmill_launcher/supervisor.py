"""Starts shards and router, waits until they serve, and stops first the router and then the shards."""

import asyncio
import contextlib
import faulthandler
import logging
import os
import shlex
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from textmill_launcher.adapters import find_adapters
from textmill_launcher.causes import advice, describe_code
from textmill_launcher.child_arguments import (
    AdapterFolders,
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
from textmill_launcher.errors import ConflictingSettings, LaunchError, ModelFilesError
from textmill_launcher.exit_codes import launcher_code, meaning_of
from textmill_launcher.flag_files import check_flag_files
from textmill_launcher.hang_watch import is_process_busy
from textmill_launcher.logs import ChildOutput
from textmill_launcher.model_files import find_model
from textmill_launcher.nodes.facts import facts_of
from textmill_launcher.nodes.fingerprint import digests_of
from textmill_launcher.nodes.follower import NodeFollower
from textmill_launcher.nodes.interfaces import interface_of
from textmill_launcher.nodes.leader import NodeLeader
from textmill_launcher.nodes.meeting import Meeting, MeetingPoint, OneNode, StoppedByNode0
from textmill_launcher.plan.comparison import PlanComparison
from textmill_launcher.plan.source import check_heads
from textmill_launcher.ports import check_port
from textmill_launcher.readiness import local_url
from textmill_launcher.restart_budget import RestartBudget
from textmill_launcher.router_keeper import RouterKeeper
from textmill_launcher.settings import NODE_PORT, Settings
from textmill_launcher.shard_group import ShardGroup
from textmill_launcher.shard_groups import ShardGroups
from textmill_launcher.sockets import SocketPlaces, socket_places
from textmill_launcher.task_choice import TaskChoice, choose_task, example_of

HELPER_GRACE_S = 5.0
REPORTING_ROLES = ("shard", "router")  # whose processes write what they do when they get SIGUSR1
SHARD_UMASK = 0o077  # keeps other users from a shard's socket since the socket exists

log = logging.getLogger(__name__)

Result = TypeVar("Result")


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
        self._children: list[ChildProcess] = []  # shards and routers, of which some may have ended
        self._interface: str | None = None  # where the ranks of several nodes meet; None on one node
        self._began_s = time.monotonic()

    async def run(self) -> None:
        """Serve until a signal comes. Raises `LaunchError` when the service cannot start or go on.

        When this returns or raises, all children have ended and the sockets are gone.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGUSR1, self._report)
        with contextlib.suppress(Stopped, StoppedByNode0):
            await (self._serve() if self._settings.num_nodes == 1 else self._serve_on_nodes())
        log.info("stopped")

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop_wanted.is_set():
            log.warning("%s again: not waiting for running requests", number.name)
            self._stop_at_once.set()
        else:
            log.info("%s: stopping", number.name)
            self._stop_wanted.set()

    def _report(self) -> None:
        """Write the stacks of this process to the log, and let each shard and the router write theirs."""
        self._children = [child for child in self._children if child.is_running]
        for child in self._children:
            log.info("%s: pid %d", child.name, child.pid)
            child.report()
        faulthandler.dump_traceback(all_threads=True)

    async def _serve(self) -> None:
        """Serve on this machine alone."""
        settings = self._settings
        num_local = num_shards(settings, count_driver_devices)
        check_flag_files(settings)
        check_port(settings.hostname, settings.port)
        model, choice = await self._find_model()
        num_local = self._check_world_size(num_local, choice)

        def meeting_of(replica: int) -> Meeting:
            port = None if settings.master_port is None else settings.master_port + replica
            return OneNode(world_size=num_local, master_addr=settings.master_addr, master_port=port)

        meetings = [meeting_of(replica) for replica in range(settings.num_replicas)]
        await self._serve_model(model, choice, num_local, meetings)

    async def _serve_on_nodes(self) -> None:
        """Serve on several machines, of which this is one."""
        settings = self._settings
        num_local = num_shards(settings, count_driver_devices)
        check_flag_files(settings)
        if settings.node_rank == 0:
            check_port(settings.hostname, settings.port)
        node = self._make_node(num_local)
        try:
            await self._unless_stopped(node.open())
            failure = asyncio.create_task(node.wait_for_failure())
            model, choice = await self._unless_stopped(self._find_model(), failure)
            if not choice.writes_text:
                raise ConflictingSettings(
                    f"--num-nodes is {settings.num_nodes}, and this model's task is {choice.task}: several nodes "
                    "divide models that write text; start one server for each machine instead"
                )
            node.offer(
                await asyncio.to_thread(  # reads files, while signs of life must go out
                    digests_of,
                    model.path,
                    with_code=settings.trust_remote_code,
                    with_pickles=settings.allow_pickle,
                )
            )
            self._interface = interface_of(node.address)
            if isinstance(node, NodeLeader):
                await self._serve_model(model, choice, num_local, [node])
            else:
                await self._follow(model, num_local, node)
        except LaunchError as error:
            await node.close(error)
            raise
        finally:
            await node.close(None)

    async def _find_model(self) -> tuple[ModelFolder, TaskChoice]:
        """Return the model's folder, and its task."""
        began_s = time.monotonic()
        model = await find_model(self._settings, self._environ, self._run_helper)
        log.info("model files: %s (%.1f s)", model.path, time.monotonic() - began_s)
        choice = choose_task(model.path, self._settings.task)
        log.info("task: %s (by %s)", choice.task, choice.source)
        return replace(model, task=choice.task), choice

    def _make_node(self, num_local: int) -> NodeLeader | NodeFollower:
        settings = self._settings
        facts = facts_of(settings, num_local)
        master = MeetingPoint(settings.master_addr, settings.master_port or NODE_PORT)
        if settings.node_rank == 0:
            return NodeLeader(facts=facts, master=master, node_timeout_s=settings.node_timeout)
        return NodeFollower(
            node=settings.node_rank,
            facts=facts,
            master=master,
            node_timeout_s=settings.node_timeout,
            is_busy=self._is_a_shard_busy,
        )

    def _is_a_shard_busy(self) -> bool:
        shards = [child for child in self._children if child.name.role == "shard" and child.is_running]
        return any(is_process_busy(shard.pid) for shard in shards)

    async def _serve_model(
        self, model: ModelFolder, choice: TaskChoice, num_local: int, meetings: Sequence[Meeting]
    ) -> None:
        """Run the router, and the shards of this machine for each of the replicas."""
        num_replicas = len(meetings)
        world_size = num_local * self._settings.num_nodes
        if choice.writes_text:
            check_heads(model.path, world_size)
        adapters = await self._find_adapters(model, choice)
        if choice.writes_text:
            self._output.read_by(PlanComparison(self._settings, model, world_size).on_line)
        with socket_places(self._settings.shard_uds_path, num_local * num_replicas) as all_sockets:
            sockets = [all_sockets.of_replica(replica, num_local) for replica in range(num_replicas)]
            has_tls = self._settings.tls_cert is not None
            url = local_url(self._settings.hostname, self._settings.port, has_tls=has_tls)
            router = self._make_router(model, [places.of(0) for places in sockets], url, adapters, all_sockets)
            groups = ShardGroups(
                [
                    self._make_group(model, replica, sockets[replica], num_local, meeting, router.tell)
                    for replica, meeting in enumerate(meetings)
                ]
            )
            async with self._running(groups, router, meetings) as guards:
                await self._watch(guards, asyncio.gather(groups.wait_ready(), router.wait_ready()))
                log.info("ready after %.1f s: %s on %s", time.monotonic() - self._began_s, model.model_id, url)
                log.info("try: %s", self._example_call(url, model.task))
                if choice.writes_text and not self._settings.disable_playground:
                    log.info("playground: %s/playground", url)
                await self._watch(guards, None)

    async def _follow(self, model: ModelFolder, num_local: int, node: NodeFollower) -> None:
        """Run the shards of a machine other than node 0, which has the router."""
        with socket_places(self._settings.shard_uds_path, num_local) as sockets:
            groups = ShardGroups([self._make_group(model, 0, sockets, num_local, node)])
            guard = asyncio.create_task(groups.run())
            try:
                await self._watch([guard], None)
            except Stopped:
                await self._stay(node, guard)
                raise
            finally:
                await _cancel(guard)
                await groups.stop(self._stop_at_once)

    async def _stay(self, node: NodeFollower, guard: "asyncio.Task[None]") -> None:
        """Serve on after a signal until node 0 stops, because requests that run there need the ranks of all nodes.

        A cluster sends its signal to all nodes at once. This node stays no longer than node 0 may take.
        """
        patience_s = self._settings.shutdown_delay + self._settings.graceful_termination_timeout
        if not node.is_at_work:
            return
        log.info("stays until node 0 stops, at most %.0f s; a second signal ends this node at once", patience_s)
        hurry = asyncio.create_task(self._stop_at_once.wait())
        await asyncio.wait([hurry, guard], timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        await asyncio.gather(hurry, return_exceptions=True)

    def _make_group(
        self,
        model: ModelFolder,
        replica: int,
        sockets: SocketPlaces,
        num_local: int,
        meeting: Meeting,
        tell_router: Callable[[str], None] = lambda note: None,
    ) -> ShardGroup:
        settings = self._settings
        shown_replica = replica if settings.num_replicas > 1 else None
        environ = child_environment(self._environ, settings, self._interface)

        def spawn_rank(place: ShardPlace) -> ChildProcess:
            command = shard_command(settings, model, place)
            return self._spawn(ChildName("shard", place.rank, shown_replica), command, environ, umask=SHARD_UMASK)

        return ShardGroup(
            replica=replica,
            ranks=range(settings.node_rank * num_local, (settings.node_rank + 1) * num_local),
            world_size=settings.num_nodes * num_local,
            sockets=sockets,
            meeting=meeting,
            spawn_rank=spawn_rank,
            budget=RestartBudget(settings.max_restarts, settings.restart_window),
            tell_router=tell_router,
        )

    async def _find_adapters(self, model: ModelFolder, choice: TaskChoice) -> AdapterFolders:
        """Return the folders of the adapters. Raises `ConflictingSettings` where the model writes no text."""
        settings = self._settings
        if not choice.writes_text and (settings.lora_adapters or settings.lora_runtime_updates):
            raise ConflictingSettings(
                f"adapters are for models that write text, and this model's task is {choice.task}: leave out "
                "--lora-adapters and --lora-runtime-updates"
            )
        names = (*settings.served_model_name, model.model_id)
        return await find_adapters(settings, names, self._environ, self._run_helper)

    def _make_router(
        self,
        model: ModelFolder,
        rank0_sockets: Sequence[Path],
        url: str,
        adapters: AdapterFolders,
        places: SocketPlaces,
    ) -> RouterKeeper:
        settings = self._settings
        environ = router_environment(self._environ, settings)
        adapters_file = places.adapters_file if settings.lora_runtime_updates else None
        command = router_command(settings, model, rank0_sockets, adapters, adapters_file)
        return RouterKeeper(
            url=url,
            spawn=lambda: self._spawn(ChildName("router"), command, environ, has_input=True),
            budget=RestartBudget(settings.max_restarts, settings.restart_window),
        )

    @contextlib.asynccontextmanager
    async def _running(
        self, groups: ShardGroups, router: RouterKeeper, meetings: Sequence[Meeting]
    ) -> AsyncIterator[list["asyncio.Task[None]"]]:
        """Start shards and router, and stop them when the block is left: first the router, then the shards.

        Gives the tasks that guard the two. The router starts at once, because it binds its port and tells clients the
        phase of the shards. The shards are guarded until the router has ended, because its requests may need them. The
        other nodes hear of the end before the shards do, or they would take the end of a rank for a loss.
        """
        group_guard = asyncio.create_task(groups.run())
        router_guard = asyncio.create_task(router.run())
        failure: LaunchError | None = None
        try:
            yield [group_guard, router_guard]
        except LaunchError as error:
            failure = error
            raise
        finally:
            await _cancel(router_guard)
            hurry = asyncio.create_task(self._wait_for_hurry())
            grace_s = self._settings.shutdown_delay + self._settings.graceful_termination_timeout
            await router.stop(grace_s=grace_s, hurry=[hurry, group_guard])
            await _cancel(group_guard)
            await asyncio.gather(*(meeting.close(failure) for meeting in meetings))
            await groups.stop(self._stop_at_once)
            await _cancel(hurry)

    async def _wait_for_hurry(self) -> None:
        await self._stop_at_once.wait()

    def _spawn(
        self,
        name: ChildName,
        command: Sequence[str],
        environ: Mapping[str, str],
        umask: int = -1,
        *,
        has_input: bool = False,
    ) -> ChildProcess:
        child = ChildProcess.spawn(name, command, environ, self._output, umask, has_input=has_input)
        if name.role in REPORTING_ROLES:
            self._children.append(child)
        log.info("%s: started, pid %d", name, child.pid)
        log.debug("%s: %s", name, " ".join(command))
        return child

    async def _watch(self, guards: Sequence["asyncio.Task[None]"], goal: "asyncio.Future[Any] | None") -> None:
        """Wait for `goal`, or without a goal for ever.

        Raises `Stopped` when a signal comes first, and the error of the first guard that ends before.
        """
        stop = asyncio.create_task(self._stop_wanted.wait())
        own: list[asyncio.Future[Any]] = [stop, *([] if goal is None else [goal])]
        try:
            await asyncio.wait([*own, *guards], return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                raise Stopped
            for guard in guards:  # the shards' guard comes first, because a router may end when the shards are lost
                if guard.done():
                    guard.result()
        finally:
            for task in own:
                task.cancel()
            await asyncio.gather(*own, return_exceptions=True)

    async def _unless_stopped(self, work: Coroutine[Any, Any, Result], *guards: "asyncio.Task[None]") -> Result:
        """Return the result of `work`. Raises `Stopped` and the errors of guards as `_watch` does."""
        task = asyncio.create_task(work)
        try:
            await self._watch(guards, task)
            return task.result()
        finally:
            for own in (task, *guards):
                await _cancel(own)

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
                code = launcher_code(end.result())
                why = f"{name} {describe_code(end.result())} ({meaning_of(end.result()).cause})"
                tried = advice(end.result(), helper.last_lines)
                raise ModelFilesError(f"{why}; what to try: {tried}\n  its last lines:\n{reason}", code)
            return helper.last_stdout_line
        finally:
            stop.cancel()
            await helper.stop(HELPER_GRACE_S)

    def _check_world_size(self, world_size: int, choice: TaskChoice) -> int:
        """Return the number of shards. Raises `ConflictingSettings` for several shards of a model that writes no text.

        Devices that nobody asked to share one model are not shared.
        """
        if choice.writes_text or world_size == 1:
            return world_size
        if self._settings.num_shard is None and not self._settings.sharded:
            return 1
        raise ConflictingSettings(
            f"--num-shard is {world_size}, and a model of the task {choice.task} has one shard: give --num-replicas "
            f"{world_size}, which spreads the calls over as many copies of the model"
        )

    def _example_call(self, url: str, task: str) -> str:
        """Return a command line that asks the server something and ends within seconds."""
        has_key = self._settings.api_key or self._settings.api_key_file
        key = ' -H "Authorization: Bearer $API_KEY"' if has_key else ""
        path, body = example_of(task)
        return f"curl {shlex.quote(url + path)}{key} {body}"


async def _cancel(task: "asyncio.Task[Any]") -> None:
    """End a task, whatever it has come to."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


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
