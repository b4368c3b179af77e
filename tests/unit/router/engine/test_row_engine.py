"""Batches that cannot be written or read end their calls, and fail no other call."""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop
from textmill_router.engine import row_replica
from textmill_router.engine.row_client import RowClient, ShardAway
from textmill_router.engine.row_engine import CallResults, RowEngine, RowsFailed
from textmill_router.engine.shard_client import ShardClientOptions
from textmill_router.engine.shard_link import ShardLink
from textmill_router.engine.status import EnginePhase
from textmill_router.tasks.row_results import BatchAnswers, Numbers
from textmill_router.tasks.rows import AnyRow, FileRow, Row
from textmill_router.tasks.wishes import VectorWish, WritingWish

from tests.fakes.fake_row_shard import FakeRowShard, RowShardOptions, plain_vector

IMAGES = RowShardOptions(task="image-to-text", heads=("writings",), media="image")


def run(socket: Path, body: Callable[[RowEngine], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = RowEngine([ShardClientOptions(ShardLink(str(socket)))], "")
        await engine.start()
        try:
            async with asyncio.timeout(10):
                await engine.wait_for_phase(EnginePhase.READY)
                await body(engine)
        finally:
            await engine.stop()

    asyncio.run(main())


def image(**wish: Any) -> FileRow:
    return FileRow(b"picture", WritingWish(**wish), "inputs")


def text(*ids: int) -> Row:
    return Row(array("I", ids), VectorWish(is_normalized=False))


def failure_of(result: CallResults | BaseException) -> str:
    assert isinstance(result, RowsFailed)
    return str(result)


def test_a_row_that_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    async def body(engine: RowEngine) -> None:
        wishes = [{"top_k": 5}, {"top_k": 1 << 32}, {"max_new_tokens": 7}]
        calls = [engine.compute([image(**wish)]) for wish in wishes]
        small, large, other = await asyncio.gather(*calls, return_exceptions=True)
        assert "could not be written" in failure_of(large)
        for result, said in ((small, "top_k=5"), (other, "max_new_tokens=7")):
            assert isinstance(result, CallResults)
            assert said in result.rows[0].text  # type: ignore[union-attr]
        assert engine.num_waiting == engine.replicas[0].num_running == 0

    with FakeRowShard(tmp_path / "s", IMAGES):
        run(tmp_path / "s", body)


def test_an_answer_that_cannot_be_read_ends_its_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = row_replica.answers_from_proto

    def fail_for_long_rows(message: Any, number: int, rows: Sequence[AnyRow]) -> BatchAnswers:
        if any(row.num_tokens > 2 for row in rows):
            raise RuntimeError("generator raised StopIteration")
        return read(message, number, rows)

    monkeypatch.setattr(row_replica, "answers_from_proto", fail_for_long_rows)

    async def body(engine: RowEngine) -> None:
        calls = [engine.compute([row]) for row in (text(1, 2), text(1, 2, 3))]
        short, long = await asyncio.gather(*calls, return_exceptions=True)
        assert "answer not read (generator raised StopIteration)" in failure_of(long)
        assert isinstance(short, CallResults)
        assert short.rows == [Numbers(3, array("f", plain_vector([1, 2])))]

    with FakeRowShard(tmp_path / "s"):
        run(tmp_path / "s", body)


def test_a_caller_that_leaves_a_refused_batch_is_not_sent_again(tmp_path: Path) -> None:
    async def body(engine: RowEngine) -> None:
        shard.hold()
        leaving, staying = (asyncio.create_task(engine.compute([text(1, 2)])) for _ in range(2))
        await asyncio.to_thread(shard.wait_for_batches, 1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        shard.release()
        assert "refused the row" in failure_of((await asyncio.gather(staying, return_exceptions=True))[0])
        assert [len(batch.rows) for batch in shard.batches] == [2, 1]

    with FakeRowShard(tmp_path / "s") as shard:
        shard.refuse(lambda ids: True)
        run(tmp_path / "s", body)


def test_a_batch_of_a_closed_connection_is_sent_again(tmp_path: Path) -> None:
    """The first batch waits in the shard, and the second is lost with its connection."""

    async def body(engine: RowEngine) -> None:
        shard.hold()
        first = asyncio.create_task(engine.compute([text(1, 2), text(3, 4)]))
        await asyncio.to_thread(shard.wait_for_batches, 1)
        shard.lose_batches(1)
        second = asyncio.create_task(engine.compute([text(5, 6), text(7, 8)]))
        await asyncio.to_thread(shard.wait_for_batches, 3)
        shard.release()
        results = await asyncio.gather(first, second)
        assert [row for result in results for row in result.rows] == [
            Numbers(3, array("f", plain_vector(ids))) for ids in ([1, 2], [3, 4], [5, 6], [7, 8])
        ]
        assert engine.metrics.num_repeated_rows == 4
        assert [len(batch.rows) for batch in shard.batches] == [2, 2, 1, 1, 1, 1]

    with FakeRowShard(tmp_path / "s", RowShardOptions(max_batch_tokens=4)) as shard:
        run(tmp_path / "s", body)


def test_a_suspect_runs_with_nothing_beside_it_and_other_rows_wait(tmp_path: Path) -> None:
    async def body(engine: RowEngine) -> None:
        shard.lose_batches(1)
        shard.hold()
        suspects = asyncio.create_task(engine.compute([text(1, 2), text(3, 4)]))
        await asyncio.to_thread(shard.wait_for_batches, 2)  # the lost one, and the first suspect
        others = asyncio.create_task(engine.compute([text(5, 6), text(7, 8)]))  # a whole batch
        for _ in range(10):  # turns of the loop, of which the engine needs two to send a batch
            await asyncio.sleep(0)
        assert (engine.num_waiting, engine.replicas[0].num_running) == (3, 1)
        shard.release()
        await asyncio.gather(suspects, others)
        assert [batch.rows for batch in shard.batches] == [[[1, 2], [3, 4]], [[1, 2]], [[3, 4]], [[5, 6], [7, 8]]]

    with FakeRowShard(tmp_path / "s", RowShardOptions(max_batch_tokens=4)) as shard:
        run(tmp_path / "s", body)


def test_a_batch_that_finds_no_shard_makes_no_suspects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send, sends = RowClient.send, []

    async def be_away_once(client: RowClient, batch: Any) -> Any:
        sends.append(batch)
        if len(sends) == 1:
            raise ShardAway("the shard is away")
        return await send(client, batch)

    monkeypatch.setattr(RowClient, "send", be_away_once)

    async def body(engine: RowEngine) -> None:
        await engine.compute([text(1, 2), text(3, 4)])
        assert [len(batch.rows) for batch in shard.batches] == [2]
        assert (len(sends), engine.metrics.num_repeated_rows) == (2, 0)

    with FakeRowShard(tmp_path / "s") as shard:
        run(tmp_path / "s", body)


def test_rows_are_sent_at_the_end_of_a_window_whose_timer_is_early(tmp_path: Path) -> None:
    """Timers of uvloop count whole milliseconds, and fire while its clock is a rounding short of the window's end."""

    async def main() -> None:
        engine = RowEngine([ShardClientOptions(ShardLink(str(tmp_path / "s")))], "", batch_window_s=0.001)
        await engine.start()
        try:
            await engine.wait_for_phase(EnginePhase.READY)
            for _ in range(300):
                async with asyncio.timeout(5):
                    await engine.compute([text(1, 2)])
        finally:
            await engine.stop()

    with FakeRowShard(tmp_path / "s"), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
