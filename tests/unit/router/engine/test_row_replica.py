"""The facts of a shard of rows that a router takes, and those that end the engine."""

import asyncio
from pathlib import Path

import pytest
from textmill_router.engine.row_engine import RowEngine
from textmill_router.engine.shard_client import ShardClientOptions
from textmill_router.engine.shard_link import ShardLink
from textmill_router.engine.status import EnginePhase, EngineStatus

from tests.fakes.fake_row_shard import FakeRowShard, RowShardOptions


async def start(socket: Path, digest: str) -> EngineStatus:
    engine = RowEngine([ShardClientOptions(ShardLink(str(socket)))], digest)
    await engine.start()
    try:
        async with asyncio.timeout(10):
            return await engine.wait_for_phase(EnginePhase.READY, EnginePhase.STOPPED)
    finally:
        await engine.stop()


@pytest.mark.parametrize(
    ("of_shard", "phase"),
    [("abc", EnginePhase.READY), ("", EnginePhase.READY), ("other", EnginePhase.STOPPED)],
)
def test_another_tokenizer_ends_the_engine(tmp_path: Path, of_shard: str, phase: EnginePhase) -> None:
    with FakeRowShard(tmp_path / "s", RowShardOptions(tokenizer_digest=of_shard)):
        status = asyncio.run(start(tmp_path / "s", "abc"))
    assert status.phase is phase
    assert ("shard has tokenizer other, router abc" in (status.error or "")) == (phase is EnginePhase.STOPPED)
