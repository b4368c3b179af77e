"""Two engine loops behind one router, each in front of a fake shard behind real gRPC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from textmill_router.engine.replica_set import ReplicaSet
from textmill_router.engine.shard_client import ShardClientOptions
from textmill_router.engine.shard_link import ShardLink
from textmill_router.engine.status import EnginePhase, EngineUnavailable
from textmill_router.request import FailureCode
from textmill_router.scheduler.scheduler import QueueFull
from textmill_router.text.events import GenerationFailed
from textmill_router.text.tokenization import Tokenizer

from tests.fakes.engine_bench import SMALL, Bench, NoReader, alphabet, configure, run, until
from tests.fakes.fake_shard import FakeShard, FakeShardOptions

SLOW = replace(SMALL, step_s=0.01)


class SetBench(Bench):
    """A bench whose engine is a set of replicas."""

    engine: ReplicaSet


@asynccontextmanager
async def open_set(folder: Path, tokenizer: Tokenizer, *, num_ready: int = 2) -> AsyncIterator[SetBench]:
    options = [ShardClientOptions(ShardLink(str(folder / name)), health_poll_s=0.01) for name in ("a", "b")]
    engine = ReplicaSet(options, configure, tokenizer.digest)
    await engine.start()
    try:
        await until(lambda: num_up(engine) == num_ready)
        yield SetBench(engine, tokenizer)
    finally:
        await engine.stop()


def num_up(engine: ReplicaSet) -> int:
    return sum(replica.status.phase is EnginePhase.READY for replica in engine.replicas)


@asynccontextmanager
async def two_shards(folder: Path, options: FakeShardOptions = SLOW) -> AsyncIterator[tuple[FakeShard, FakeShard]]:
    with ExitStack() as stack:
        first = stack.enter_context(FakeShard(folder / "a", options))
        yield first, stack.enter_context(FakeShard(folder / "b", options))


def test_streams_of_a_lost_replica_go_on_in_the_other(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with two_shards(tmp_path) as (first, second), open_set(tmp_path, tokenizer) as bench:
            tasks = [asyncio.create_task(bench.generate(bench.request(b"%d" % number))) for number in range(8)]
            await until(lambda: first.num_sampled >= 20)
            num_first = first.history[-1].num_admitted
            assert (num_first, second.history[-1].num_admitted) == (4, 4)
            first.load("weights", 0.1)  # the shard starts again and is away until the end
            first.cut()
            results = await asyncio.gather(*tasks)
            assert [result.text for result in results] == [alphabet(40)] * 8
            assert bench.engine.status.phase is EnginePhase.READY
            assert bench.engine.num_moved_requests == num_first
            assert second.history[-1].num_admitted == 8
            assert (await bench.generate()).text == alphabet(40)
            first.load(None)
            await until(lambda: num_up(bench.engine) == 2)
            for _ in range(2):
                await bench.generate(bench.request(b"new"))
            assert first.history[-1].num_admitted >= 1  # it has joined again
            await bench.is_quiet()

    run(body())


def test_requests_wait_for_the_replica_that_is_back_first(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with two_shards(tmp_path) as (first, second), open_set(tmp_path, tokenizer) as bench:
            tasks = [asyncio.create_task(bench.generate(bench.request(b"%d" % number))) for number in range(8)]
            await until(lambda: first.num_sampled >= 20 and second.num_sampled >= 20)
            for shard in (first, second):
                shard.load("weights", 0.1)
                shard.cut()
            await bench.engine.wait_for_phase(EnginePhase.LOST)
            tasks.append(asyncio.create_task(bench.generate()))  # taken, and waits
            await asyncio.sleep(0)
            second.load(None)
            assert [result.text for result in await asyncio.gather(*tasks)] == [alphabet(40)] * 9
            assert first.epoch == 0
            assert second.history[-1].num_admitted == 9

    run(body())


def test_one_ready_replica_serves_while_the_other_still_loads(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with two_shards(tmp_path) as (first, _):
            first.cut()
            first.load("weights", 0.5)
            async with open_set(tmp_path, tokenizer, num_ready=1) as bench:
                assert bench.engine.status.phase is EnginePhase.READY
                results = await asyncio.gather(*(bench.generate() for _ in range(4)))
                assert [result.text for result in results] == [alphabet(40)] * 4
                assert first.epoch == 0

    run(body())


def test_a_replica_with_another_model_is_left_and_the_other_serves(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with two_shards(tmp_path) as (first, second), open_set(tmp_path, tokenizer) as bench:
            tasks = [asyncio.create_task(bench.generate(bench.request(b"%d" % number))) for number in range(4)]
            await until(lambda: first.num_sampled >= 4)
            first.change_info(model_id="another")
            first.cut()
            assert [result.text for result in await asyncio.gather(*tasks)] == [alphabet(40)] * 4
            await until(lambda: bench.engine.replicas[0].status.phase is EnginePhase.STOPPED)
            assert "another" in (bench.engine.replicas[0].status.error or "")
            assert (await bench.generate()).text == alphabet(40)
            second.change_info(model_id="another")
            second.cut()
            status = await bench.engine.wait_for_phase(EnginePhase.STOPPED)
            assert "another" in (status.error or "")
            with pytest.raises(EngineUnavailable):
                bench.engine.submit(bench.request(), NoReader())

    run(body())


def test_cancelled_requests_leave_whichever_replica_has_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with two_shards(tmp_path) as (first, second), open_set(tmp_path, tokenizer) as bench:
            tasks = [asyncio.create_task(bench.generate(bench.request(b"%d" % number, 4000))) for number in range(4)]
            await until(lambda: first.num_sampled >= 4 and second.num_sampled >= 4)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await bench.is_quiet()

    run(body())


def test_a_full_queue_sends_a_request_to_the_other_replica(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with two_shards(tmp_path) as (first, second), open_set(tmp_path, tokenizer) as bench:
            first.pause()
            second.pause()
            # 256 wait for each replica at most, beside as many as the eight free slots of each will take.
            requests = [bench.request(b"x" * (1 + number % 7)) for number in range(2 * (256 + 8))]
            for request in requests:
                bench.engine.submit(request, NoReader())
            with pytest.raises(QueueFull):
                bench.engine.submit(bench.request(), NoReader())
            for request in requests:
                bench.engine.cancel(request.request_id)

    run(body())


def test_the_stop_fails_the_requests_of_all_replicas(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with two_shards(tmp_path) as (first, second), open_set(tmp_path, tokenizer) as bench:
            tasks = [asyncio.create_task(bench.generate(bench.request(b"%d" % number, 4000))) for number in range(4)]
            await until(lambda: first.num_sampled >= 4 and second.num_sampled >= 4)
            await bench.engine.stop()
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(error, GenerationFailed)
                assert error.failure.code is FailureCode.SHUTDOWN
            assert bench.engine.num_moved_requests == 0

    run(body())
