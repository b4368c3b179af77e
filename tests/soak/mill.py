"""The processes of a soak: a router, a replica of one rank and one of two, kept alive by the launcher's own code."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
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
from textmill_launcher.logs import ChildOutput
from textmill_launcher.nodes.meeting import OneNode
from textmill_launcher.restart_budget import RestartBudget
from textmill_launcher.router_keeper import RouterKeeper
from textmill_launcher.settings import load_settings
from textmill_launcher.shard_group import ShardGroup
from textmill_launcher.shard_groups import ShardGroups
from textmill_launcher.sockets import SocketPlaces

from tests.fakes.processes import free_port

WORLD_SIZES = (1, 2)  # of replica 0 and of replica 1
KV_BYTES = 16 * 1024 * 1024
STOP_GRACE_S = 10.0


@dataclass
class Mill:
    """The server under test. `children` holds the newest process of each name."""

    url: str
    children: dict[ChildName, ChildProcess] = field(default_factory=dict)
    router_faults: list[tuple[float, float]] = field(default_factory=list)  # began, ended, on the monotonic clock

    def process(self, name: ChildName) -> psutil.Process | None:
        """Return the living process of this name, or None."""
        child = self.children.get(name)
        if child is None or not child.is_running:
            return None
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(child.pid)
        return None

    @property
    def shard_names(self) -> list[ChildName]:
        """The names of all ranks of all replicas."""
        return [
            ChildName("shard", rank, replica)
            for replica, world_size in enumerate(WORLD_SIZES)
            for rank in range(world_size)
        ]

    def was_router_away(self, began_s: float, ended_s: float) -> bool:
        """Whether the router was killed or stopped at some time between the two, so that a client may see a reset."""
        return any(began_s <= fault_ended and fault_began <= ended_s for fault_began, fault_ended in self.router_faults)


@contextlib.asynccontextmanager
async def running_mill(model: Path, folder: Path, log_file: Path) -> AsyncIterator[Mill]:
    """Start the processes, wait until all serve, and end them when the block is left."""
    port = free_port()
    flags = ["--hostname", "127.0.0.1", "--port", str(port), "--num-replicas", str(len(WORLD_SIZES))]
    flags += ["--dtype", "float32", "--kv-cache-bytes", str(KV_BYTES), "--max-concurrent-requests", "64"]
    settings = load_settings([*flags, "--model-id", str(model)], {})
    files = ModelFolder(model, "soak/tiny", None)
    environ = {name: value for name, value in os.environ.items() if name not in ("API_KEY", "HF_TOKEN")}
    mill = Mill(f"http://127.0.0.1:{port}")
    sockets = [SocketPlaces(str(folder / "shard"), sum(WORLD_SIZES[:replica])) for replica in range(len(WORLD_SIZES))]
    with log_file.open("w") as log:
        output = ChildOutput(log, json_output=False)

        def spawn(name: ChildName, command: Sequence[str], variables: dict[str, str]) -> ChildProcess:
            takes_notes = name.role == "router"
            child = ChildProcess.spawn(name, command, variables, output, has_input=takes_notes)
            mill.children[name] = child
            return child

        command = router_command(settings, files, [places.of(0) for places in sockets])
        router = RouterKeeper(
            url=mill.url,
            spawn=lambda: spawn(ChildName("router"), command, router_environment(environ, settings)),
            budget=RestartBudget(1, 0.0),
        )

        def group_of(replica: int, world_size: int) -> ShardGroup:
            def spawn_rank(place: ShardPlace) -> ChildProcess:
                name = ChildName("shard", place.rank, replica)
                return spawn(name, shard_command(settings, files, place), child_environment(environ, settings))

            return ShardGroup(
                replica=replica,
                ranks=range(world_size),
                world_size=world_size,
                sockets=sockets[replica],
                meeting=OneNode(world_size=world_size, master_addr="127.0.0.1", master_port=None),
                spawn_rank=spawn_rank,
                budget=RestartBudget(1, 0.0),  # every restart is the first of its window
                tell_router=router.tell,
            )

        groups = ShardGroups([group_of(replica, world_size) for replica, world_size in enumerate(WORLD_SIZES)])
        guards = [asyncio.create_task(groups.run()), asyncio.create_task(router.run())]
        try:
            ready = asyncio.gather(groups.wait_ready(), router.wait_ready())
            await asyncio.wait([ready, *guards], return_when=asyncio.FIRST_COMPLETED)
            for guard in guards:
                if guard.done():
                    guard.result()
            yield mill
            for guard in guards:
                assert not guard.done(), guard
        finally:
            for guard in guards:
                guard.cancel()
            await asyncio.gather(*guards, return_exceptions=True)
            await router.stop(grace_s=STOP_GRACE_S, hurry=[])
            hurry = asyncio.Event()
            await groups.stop(hurry)


def now_s() -> float:
    """Return the time on the monotonic clock, in seconds."""
    return time.monotonic()
