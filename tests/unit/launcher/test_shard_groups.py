"""The groups of several replicas, of which some are given up."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
from textmill_launcher.errors import ChildDied
from textmill_launcher.shard_group import ShardGroup
from textmill_launcher.shard_groups import ShardGroups


class FakeGroup:
    """A group that the test gives up by hand."""

    def __init__(self, *, was_ready: bool = True) -> None:
        self.was_ready = was_ready
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_running = False
        self.num_stops = 0

    async def wait_ready(self) -> None:
        return

    async def run(self) -> None:
        self.is_running = True
        try:
            await self.end
        finally:
            self.is_running = False

    async def stop(self, hurry: asyncio.Event) -> None:
        self.num_stops += 1

    def give_up(self, text: str) -> None:
        self.end.set_exception(ChildDied(text, 3))


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 10))


def groups_of(*fakes: FakeGroup) -> ShardGroups:
    return ShardGroups([cast(ShardGroup, fake) for fake in fakes])


def test_a_replica_that_is_given_up_leaves_the_others_running(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        first, second = FakeGroup(), FakeGroup()
        guard = asyncio.create_task(groups_of(first, second).run())
        await asyncio.sleep(0)
        first.give_up("rank 0 was killed")
        for _ in range(5):
            await asyncio.sleep(0)
        assert second.is_running
        assert "replica 0 is given up, 1 of 2 go on: rank 0 was killed" in caplog.text
        second.give_up("rank 1 was killed")
        with pytest.raises(ChildDied, match="rank 1 was killed"):
            await guard

    with caplog.at_level(logging.ERROR):
        run(body)


def test_a_replica_that_never_was_ready_ends_the_start() -> None:
    async def body() -> None:
        first, second = FakeGroup(was_ready=False), FakeGroup()
        guard = asyncio.create_task(groups_of(first, second).run())
        await asyncio.sleep(0)
        first.give_up("a bad flag")
        with pytest.raises(ChildDied, match="a bad flag"):
            await guard
        assert not second.is_running

    run(body)


def test_the_stop_reaches_each_group() -> None:
    async def body() -> None:
        fakes = [FakeGroup(), FakeGroup()]
        await groups_of(*fakes).stop(asyncio.Event())
        assert [fake.num_stops for fake in fakes] == [1, 1]

    run(body)
