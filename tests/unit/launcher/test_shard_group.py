"""A group of shards that dies, starts again, or is given up. The shards are fakes in processes of their own."""

import asyncio
import io
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textmill_launcher import load_watch
from textmill_launcher.child_arguments import ShardPlace
from textmill_launcher.child_name import ChildName
from textmill_launcher.child_process import ChildProcess
from textmill_launcher.errors import ChildDied
from textmill_launcher.logs import ChildOutput
from textmill_launcher.nodes.meeting import OneNode
from textmill_launcher.restart_budget import RestartBudget
from textmill_launcher.shard_group import ShardGroup
from textmill_launcher.sockets import SocketPlaces

LIMIT_S = 60.0
FAKE_SHARD = (sys.executable, "-m", "tests.fakes.fake_shard")
GIVES_UP = (sys.executable, "-c", "raise SystemExit(3)")
SLEEPS = (sys.executable, "-c", "import time; time.sleep(600)")
KILLS_ITSELF = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")


class Group:
    """A group under test, and the children that the group has started, oldest first."""

    def __init__(
        self, folder: Path, world_size: int, max_restarts: int, command_of: Callable[[int], tuple[str, ...]]
    ) -> None:
        """`command_of` gets the number of the child, from 0, and returns its command."""
        self.children: list[ChildProcess] = []
        self.places: list[ShardPlace] = []
        output = ChildOutput(io.StringIO(), json_output=False)

        def spawn_rank(place: ShardPlace) -> ChildProcess:
            command = [*command_of(len(self.children)), "--uds-path", str(place.socket)]
            child = ChildProcess.spawn(ChildName("shard", place.rank), command, os.environ, output)
            self.children.append(child)
            self.places.append(place)
            return child

        self.group = ShardGroup(
            ranks=range(world_size),
            world_size=world_size,
            sockets=SocketPlaces(str(folder / "s")),
            meeting=OneNode(world_size=world_size, master_addr="127.0.0.1", master_port=None),
            spawn_rank=spawn_rank,
            budget=RestartBudget(max_restarts, 600.0),
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - a process has no event to wait for
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(group: Group) -> AsyncIterator["asyncio.Task[None]"]:
    guard = asyncio.create_task(group.group.run())
    try:
        yield guard
    finally:
        guard.cancel()
        await asyncio.gather(guard, return_exceptions=True)
        hurry = asyncio.Event()
        hurry.set()
        await group.group.stop(hurry)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def test_all_ranks_start_again_on_the_same_sockets_when_one_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="textmill_launcher")

    async def main() -> None:
        group = Group(tmp_path, 2, 1, lambda number: FAKE_SHARD)
        async with running(group) as guard:
            await group.group.wait_ready()
            os.kill(group.children[1].pid, signal.SIGKILL)
            await group.until(lambda: "ready again after" in caplog.text)
            first, again = group.places[:2], group.places[2:]
            assert [place.socket for place in again] == [place.socket for place in first]
            assert not group.children[0].is_running  # rank 0 was ended, although it lived
            assert [child.is_running for child in group.children[2:]] == [True, True]
            assert not guard.done()

    run(main)
    assert "shard rank 1 was killed by SIGKILL while serving" in caplog.text
    assert "(restart 1 of 1 in 600 s)" in caplog.text


def test_loss_without_restarts_left_ends_all_ranks_and_names_the_culprit(tmp_path: Path) -> None:
    async def main() -> None:
        group = Group(tmp_path, 2, 0, lambda number: FAKE_SHARD)
        async with running(group) as guard:
            await group.group.wait_ready()
            os.kill(group.children[1].pid, signal.SIGKILL)
            with pytest.raises(ChildDied, match="shard rank 1 was killed by SIGKILL while serving") as caught:
                await guard
            assert caught.value.exit_code == 128 + signal.SIGKILL
            assert not any(child.is_running for child in group.children)

    run(main)


def test_used_up_restarts_are_named_with_their_flags(tmp_path: Path) -> None:
    async def main() -> None:
        group = Group(tmp_path, 1, 1, lambda number: FAKE_SHARD if number == 0 else GIVES_UP)
        async with running(group) as guard:
            await group.group.wait_ready()
            os.kill(group.children[0].pid, signal.SIGKILL)
            with pytest.raises(ChildDied, match="--max-restarts, --restart-window") as caught:
                await guard
            assert caught.value.exit_code == 18
            assert len(group.children) == 2

    run(main)


def test_first_start_in_which_a_rank_does_nothing_is_ended_and_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_watch, "LOOK_INTERVAL_S", 0.2)
    monkeypatch.setattr(load_watch, "IDLE_LOAD_S", 1.0)

    async def main() -> None:
        group = Group(tmp_path, 1, 3, lambda number: SLEEPS)
        async with running(group) as guard:
            with pytest.raises(ChildDied, match="without computing or reading"):
                await guard
            assert len(group.children) == 2
            assert not any(child.is_running for child in group.children)

    run(main)


def test_first_start_that_a_shard_gives_up_is_not_repeated(tmp_path: Path) -> None:
    async def main() -> None:
        group = Group(tmp_path, 1, 3, lambda number: GIVES_UP)
        async with running(group) as guard:
            with pytest.raises(ChildDied, match=r"ended with exit code 3 .* while starting"):
                await guard
            assert len(group.children) == 1

    run(main)


@pytest.mark.parametrize(("num_kills", "is_given_up"), [(1, False), (2, True)])
def test_first_start_that_a_signal_ends_is_tried_once_more(tmp_path: Path, num_kills: int, is_given_up: bool) -> None:
    async def main() -> None:
        group = Group(tmp_path, 1, 3, lambda number: KILLS_ITSELF if number < num_kills else FAKE_SHARD)
        async with running(group) as guard:
            if is_given_up:
                with pytest.raises(ChildDied, match="was killed by SIGKILL while starting"):
                    await guard
            else:
                await group.group.wait_ready()
            assert len(group.children) == 2

    run(main)
