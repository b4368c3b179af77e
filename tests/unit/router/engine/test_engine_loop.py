"""The engine loop alone, with its handler called by hand: the order in which readers get the outputs of steps."""

import asyncio
import logging
from array import array
from collections.abc import Awaitable

import pytest
from textmill_router.engine.engine_loop import EngineLoop
from textmill_router.engine.shard_client import ShardClientOptions
from textmill_router.engine.shard_link import ShardLink
from textmill_router.engine.status import EngineUnavailable
from textmill_router.request import FailureCode, GenerationRequest, RequestOutput
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.plan import Budget, StepResult

from tests.fakes.router_facts import router_facts
from tests.fakes.scheduler_hand import make_result


class Reader:
    """A reader of one request that keeps its tokens and the code of its failure."""

    def __init__(self) -> None:
        self.heard: list[int | FailureCode] = []

    def on_output(self, output: RequestOutput) -> None:
        self.heard += output.tokens
        if output.failure is not None:
            self.heard.append(output.failure.code)


class Loop:
    """An engine in its first epoch without a stream, so that plans are dropped."""

    def __init__(self, engine_type: type[EngineLoop] = EngineLoop) -> None:
        config = SchedulerConfig(Budget(64, 64, 64), max_waiting_requests=9, max_waiting_tokens=999)
        self.engine = engine_type(ShardClientOptions(ShardLink("/nowhere")), lambda facts: config, "")
        self.engine.on_hello(router_facts(), 1)

    def submit(self) -> Reader:
        reader = Reader()
        request = GenerationRequest(self.engine.next_request_id(), array("I", [1, 2]), 40, self.engine.now())
        self.engine.submit(request, reader)
        return reader

    def result(self, token: int) -> StepResult:
        """Return the result of a step that gives the first slot a token and has applied two plans."""
        return make_result(applied=2, rows=[(0, token, 0)])


def run(body: Awaitable[None]) -> None:
    async def main() -> None:
        await asyncio.wait_for(body, 10)

    asyncio.run(main())


def test_tokens_held_back_for_a_plan_come_before_those_of_the_next_step() -> None:
    async def body() -> None:
        loop = Loop()
        reader = loop.submit()
        await asyncio.sleep(0)  # plan 2 admits the request
        loop.submit()
        loop.engine.on_result(loop.result(5))  # a plan for the second request goes out, so readers wait
        assert reader.heard == []
        loop.engine.on_result(loop.result(6))
        assert reader.heard == [5, 6]

    run(body())


def test_tokens_held_back_for_a_plan_come_before_the_end() -> None:
    async def body() -> None:
        loop = Loop()
        reader = loop.submit()
        await asyncio.sleep(0)
        loop.submit()
        loop.engine.on_result(loop.result(5))
        await loop.engine.stop()
        assert reader.heard == [5, FailureCode.SHUTDOWN]

    run(body())


def test_nothing_is_taken_after_the_stop() -> None:
    async def body() -> None:
        loop = Loop()
        await loop.engine.stop()
        with pytest.raises(EngineUnavailable, match="the router is stopping"):
            loop.submit()

    run(body())


class _ClockedEngine(EngineLoop):
    now_s = 0.0

    def now(self) -> float:
        return self.now_s


def test_step_loop_that_the_shard_calls_late_is_away_until_the_next_heartbeat_on_time() -> None:
    async def body() -> None:
        engine = Loop().engine
        for overdue_s, is_away in ((0.0, False), (0.2, True), (0.0, False)):
            engine.on_heartbeat(overdue_s=overdue_s)
            assert engine.signs().is_away is is_away

    run(body())


def test_memory_faults_add_up_over_processes_that_count_from_their_start() -> None:
    async def body() -> None:
        engine = Loop().engine
        for count in (0, 2, 2, 5, 1, 4):  # 5, then a new process
            engine.on_heartbeat(overdue_s=0.0, num_memory_faults=count)
        assert engine.steps.num_memory_faults == 5 + 3

    run(body())


def test_steps_that_do_not_end_are_told_each_half_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        loop = Loop(_ClockedEngine)
        engine = loop.engine
        assert isinstance(engine, _ClockedEngine)

        def num_warnings_at(now_s: float) -> int:
            engine.now_s = now_s
            engine.on_heartbeat(overdue_s=0.0)
            return caplog.text.count("no step has ended for 30 s")

        assert num_warnings_at(100.0) == 0  # nothing runs
        loop.submit()
        await asyncio.sleep(0)
        assert num_warnings_at(129.0) == 0
        assert num_warnings_at(130.0) == 1
        assert num_warnings_at(140.0) == 1
        assert num_warnings_at(160.0) == 2
        engine.now_s = 180.0
        engine.on_result(loop.result(5))
        assert num_warnings_at(200.0) == 2
        assert num_warnings_at(210.0) == 3

    with caplog.at_level(logging.WARNING):
        run(body())
