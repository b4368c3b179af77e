"""Adapters between the engine and fake shards behind real gRPC: loads, unloads, lost shards, several replicas."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from textmill_router.adapters.registry import AdapterRegistry, AdapterSource, NameTaken, UnknownAdapter
from textmill_router.engine.adapter_calls import AdapterRefused, ShardAway
from textmill_router.engine.adapter_loads import AdapterLoads
from textmill_router.engine.replica_set import ReplicaSet
from textmill_router.engine.shard_client import ShardClientOptions
from textmill_router.engine.shard_link import ShardLink
from textmill_router.engine.status import EnginePhase
from textmill_router.request import Adapter, FailureCode, GenerationRequest
from textmill_router.text.events import GenerationFailed
from textmill_router.text.tokenization import Tokenizer

from tests.fakes.engine_bench import SMALL, Bench, alphabet, configure, run, until
from tests.fakes.fake_shard import FakeShard, FakeShardOptions, adapted_text, write_adapter

SLOW = replace(SMALL, step_s=0.005)


class AdapterBench(Bench):
    """A set of replicas with an adapter registry."""

    def __init__(self, engine: ReplicaSet, tokenizer: Tokenizer, folder: Path) -> None:
        super().__init__(engine, tokenizer)
        self.replicas = engine
        self.registry = engine.adapters
        self.loads = AdapterLoads(self.registry, engine)
        self.folder = folder

    async def load(self, name: str, content: str, *, in_place: bool = False, folder: str = "") -> bytes:
        """Write an adapter and load it. Returns its digest."""
        digest = write_adapter(self.folder / (folder or name), content)
        await self.loads.load(name, self.source(folder or name), in_place=in_place)
        return digest

    def source(self, name: str) -> AdapterSource:
        return AdapterSource(str(self.folder / name), name)

    def adapted(self, adapter: Adapter | None, prompt: bytes = b"hello", max_new_tokens: int = 40) -> GenerationRequest:
        assert adapter is not None
        facts = {"adapter_digest": adapter.digest, "adapter_name": adapter.name}
        return self.request(prompt, max_new_tokens, **facts)

    async def answer(self, name: str, max_new_tokens: int = 40) -> str:
        """Return the text of a call that asks for an adapter by its name."""
        adapter = self.registry.acquire(name)
        assert adapter is not None, name
        try:
            return (await self.generate(self.adapted(adapter, max_new_tokens=max_new_tokens))).text
        finally:
            self.loads.release(adapter)


@asynccontextmanager
async def open_adapters(folder: Path, tokenizer: Tokenizer, shards: Sequence[Path]) -> AsyncIterator[AdapterBench]:
    options = [ShardClientOptions(ShardLink(str(path)), health_poll_s=0.01) for path in shards]
    engine = ReplicaSet(options, configure, tokenizer.digest, adapters=AdapterRegistry())
    await engine.start()
    bench = AdapterBench(engine, tokenizer, folder)
    try:
        async with AsyncExitStack():
            await until(lambda: all(one.status.phase is EnginePhase.READY for one in engine.replicas))
            yield bench
    finally:
        await bench.loads.close()
        await engine.stop()


def test_a_loaded_adapter_answers_for_its_name_beside_the_base(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_adapters(tmp_path, tokenizer, [tmp_path / "s"]) as bench:
            digest = await bench.load("a", "one")
            other = await bench.load("b", "two")
            texts = await asyncio.gather(bench.answer("a"), bench.answer("b"), bench.generate(), bench.answer("a"))
            assert texts[0] == texts[3] == adapted_text(digest, 40)
            assert texts[1] == adapted_text(other, 40)
            assert texts[2].text == alphabet(40)
            await bench.is_quiet()

    with FakeShard(tmp_path / "s", SMALL) as shard:
        run(body())
        assert shard.adapter_calls == ["load a", "load b"]


def test_rule_23_an_unloaded_adapter_stays_until_its_last_call_has_ended(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_adapters(tmp_path, tokenizer, [tmp_path / "s"]) as bench:
            digest = await bench.load("a", "one")
            running = asyncio.create_task(bench.answer("a", 100))
            await until(lambda: shard.num_sampled > 5)
            waits = asyncio.create_task(bench.loads.unload("a", waits=True))
            await until(lambda: bench.registry.find("a") is None)  # the name goes at once
            assert bench.registry.acquire("a") is None
            assert digest in shard.adapters
            assert not waits.done()
            assert await running == adapted_text(digest, 100)
            await waits
            assert shard.adapters == {}
            assert bench.registry.wanted() == {}
            with pytest.raises(UnknownAdapter):
                await bench.loads.unload("a")

    with FakeShard(tmp_path / "s", SLOW) as shard:
        run(body())


def test_a_cancelled_call_lets_its_adapter_go_once_its_slot_is_dropped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_adapters(tmp_path, tokenizer, [tmp_path / "s"]) as bench:
            await bench.load("a", "one")
            running = asyncio.create_task(bench.answer("a", 1000))
            await until(lambda: shard.num_sampled > 5)
            await bench.loads.unload("a")
            running.cancel()
            await until(lambda: shard.adapters == {})
            await until(lambda: not bench.registry.wanted())
            await bench.is_quiet()

    with FakeShard(tmp_path / "s", SLOW) as shard:
        run(body())


def test_new_weights_under_a_name_leave_running_calls_their_own(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_adapters(tmp_path, tokenizer, [tmp_path / "s"]) as bench:
            before = await bench.load("a", "one")
            with pytest.raises(NameTaken):
                await bench.load("a", "two", folder="other")
            running = asyncio.create_task(bench.answer("a", 100))
            await until(lambda: shard.num_sampled > 5)
            after = await bench.load("a", "two", in_place=True, folder="other")
            assert await bench.answer("a") == adapted_text(after, 40)
            assert await running == adapted_text(before, 100)
            await until(lambda: list(shard.adapters) == [after])

    with FakeShard(tmp_path / "s", SLOW) as shard:
        run(body())


def test_a_refused_adapter_harms_nobody_and_leaves_the_name_as_it_was(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_adapters(tmp_path, tokenizer, [tmp_path / "s"]) as bench:
            digest = await bench.load("a", "one")
            running = [asyncio.create_task(bench.answer("a", 100)), asyncio.create_task(bench.answer("a", 100))]
            with pytest.raises(AdapterRefused, match="no module"):
                await bench.load("a", "bad", in_place=True, folder="bad")
            with pytest.raises(AdapterRefused, match=r"takes 2000 bytes, 997 are free"):
                await bench.load("b", "x" * 2000)
            with pytest.raises(AdapterRefused, match="holds no"):
                await bench.loads.load("c", bench.source("nowhere"))
            assert [await one for one in running] == [adapted_text(digest, 100)] * 2
            assert await bench.answer("a") == adapted_text(digest, 40)
            assert [one.name for one in bench.registry.listed()] == ["a"]
            bench.registry.check()

    with FakeShard(tmp_path / "s", SLOW) as shard:
        run(body())
        assert list(shard.adapters.values()) == [3]


def test_rule_22_a_shard_that_starts_again_gets_its_adapters_before_its_requests(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def body() -> None:
        async with AsyncExitStack() as stack:
            with FakeShard(tmp_path / "s", SLOW) as first:
                bench = await stack.enter_async_context(open_adapters(tmp_path, tokenizer, [tmp_path / "s"]))
                named, gone = await bench.load("a", "one"), await bench.load("b", "two")
                calls = [asyncio.create_task(bench.answer(name, 200)) for name in ("a", "b", "a")]
                await until(lambda: first.num_sampled > 5)
                await bench.loads.unload("b")  # held, so that the new shard needs the adapter too
            await until(lambda: bench.replicas.status.phase is EnginePhase.LOST)
            with FakeShard(tmp_path / "s", SMALL) as second:
                texts = await asyncio.gather(*calls)
                assert texts == [adapted_text(named, 200), adapted_text(gone, 200), adapted_text(named, 200)]
                assert sorted(second.adapter_calls[:2]) == ["load a", "load b"]
                assert len(second.history) == 1  # no plan named an adapter that was not loaded
                await until(lambda: list(second.adapters) == [named])

    run(body())


def test_a_lost_stream_loads_nothing_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_adapters(tmp_path, tokenizer, [tmp_path / "s"]) as bench:
            digest = await bench.load("a", "one")
            call = asyncio.create_task(bench.answer("a", 200))
            await until(lambda: shard.num_sampled > 5)
            shard.cut()
            assert await call == adapted_text(digest, 200)
            assert shard.adapter_calls == ["load a"]

    with FakeShard(tmp_path / "s", SLOW) as shard:
        run(body())


def test_a_folder_that_changed_costs_the_calls_of_its_adapter_and_no_others(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def body() -> None:
        async with AsyncExitStack() as stack:
            with FakeShard(tmp_path / "s", SLOW) as first:
                bench = await stack.enter_async_context(open_adapters(tmp_path, tokenizer, [tmp_path / "s"]))
                await bench.load("a", "one")
                kept = await bench.load("b", "two")
                calls = [asyncio.create_task(bench.answer(name, 200)) for name in ("a", "b")]
                base = asyncio.create_task(bench.generate())
                await until(lambda: first.num_sampled > 10)
                write_adapter(tmp_path / "a", "three")
            with FakeShard(tmp_path / "s", SMALL) as second:
                with pytest.raises(GenerationFailed) as caught:
                    await calls[0]
                assert caught.value.failure.code is FailureCode.ADAPTER_LOST
                assert await calls[1] == adapted_text(kept, 200)
                assert (await base).text == alphabet(40)
                assert [one.name for one in bench.registry.listed()] == ["b"]
                assert len(second.history) == 1
                bench.registry.check()

    run(body())


def test_a_load_reaches_every_replica_and_a_replica_that_comes_back(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        paths = [tmp_path / "s0", tmp_path / "s1"]
        async with AsyncExitStack() as stack:
            with FakeShard(paths[0], SMALL) as first:
                with FakeShard(paths[1], SMALL) as second:
                    bench = await stack.enter_async_context(open_adapters(tmp_path, tokenizer, paths))
                    one = await bench.load("a", "one")
                    assert set(first.adapters) == set(second.adapters) == {one}
                # The second replica is away while another adapter comes, and the first one goes.
                await until(lambda: bench.replicas.replicas[1].status.phase is EnginePhase.LOST)
                two = await bench.load("b", "two")
                await bench.loads.unload("a")
                await until(lambda: set(first.adapters) == {two})
                with FakeShard(paths[1], SMALL) as again:
                    await until(lambda: bench.replicas.replicas[1].status.phase is EnginePhase.READY)
                    assert set(again.adapters) == {two}
                    texts = await asyncio.gather(*(bench.answer("b") for _ in range(8)))
                    assert texts == [adapted_text(two, 40)] * 8
                    assert again.num_sampled > 0
                    assert first.num_sampled > 0

    run(body())


def test_requests_of_a_lost_replica_go_on_in_another_one_with_their_adapter(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def body() -> None:
        paths = [tmp_path / "s0", tmp_path / "s1"]
        async with AsyncExitStack() as stack:
            with FakeShard(paths[0], SLOW) as first:
                with FakeShard(paths[1], SLOW) as second:
                    bench = await stack.enter_async_context(open_adapters(tmp_path, tokenizer, paths))
                    digest = await bench.load("a", "one")
                    calls = [asyncio.create_task(bench.answer("a", 150)) for _ in range(6)]
                    await until(lambda: min(first.num_sampled, second.num_sampled) > 5)
                    await bench.loads.unload("a")  # held by all six calls
                assert await asyncio.gather(*calls) == [adapted_text(digest, 150)] * 6
                assert bench.replicas.num_moved_requests > 0
                assert len(first.history) == 1  # no plan was refused
                await until(lambda: first.adapters == {})

    run(body())


def test_a_shard_that_dies_during_a_load_fails_the_load_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with AsyncExitStack() as stack:
            with FakeShard(tmp_path / "s", SLOW) as first:
                bench = await stack.enter_async_context(open_adapters(tmp_path, tokenizer, [tmp_path / "s"]))
                one = await bench.load("a", "one")
                call = asyncio.create_task(bench.answer("a", 200))
                await until(lambda: first.num_sampled > 5)
                first.pause_loads()
                load = asyncio.create_task(bench.load("b", "two"))
                await until(lambda: first.adapter_calls[-1] == "load b")
            with pytest.raises(ShardAway):
                await load
            assert bench.registry.find("b") is None
            with FakeShard(tmp_path / "s", SMALL) as second:
                assert await call == adapted_text(one, 200)
                assert set(second.adapters) == {one}
                await bench.load("b", "two")

    run(body())


def test_registered_adapters_wait_for_shards_that_are_away(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with AsyncExitStack() as stack:
            digest = write_adapter(tmp_path / "a", "one")
            with FakeShard(tmp_path / "s", FakeShardOptions()) as first:
                bench = await stack.enter_async_context(open_adapters(tmp_path, tokenizer, [tmp_path / "s"]))
                bench.registry.register("a", bench.source("a"))
                first.pause_loads()
                loading = asyncio.create_task(bench.loads.load_registered())
                await until(lambda: first.adapter_calls == ["load a"])
            with FakeShard(tmp_path / "s", FakeShardOptions()):
                await loading
                assert await bench.answer("a") == adapted_text(digest, 40)
            bench.registry.register("bad", bench.source("bad"))
            write_adapter(tmp_path / "bad", "bad")
            refused = pytest.raises(AdapterRefused, match="'bad' cannot be loaded")
            with FakeShard(tmp_path / "s", FakeShardOptions()), refused:
                await bench.loads.load_registered()

    run(body())


def test_adapters_of_a_router_before_go_where_their_folder_has_changed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        changes: list[list[str]] = []

        async with AsyncExitStack() as stack:
            stack.enter_context(FakeShard(tmp_path / "s", FakeShardOptions()))
            bench = await stack.enter_async_context(open_adapters(tmp_path, tokenizer, [tmp_path / "s"]))

            async def note() -> None:
                changes.append([name for name, _, _ in bench.registry.loaded()])

            loads = AdapterLoads(bench.registry, bench.replicas, on_change=note)
            for name in ("torn", "same"):
                digest = write_adapter(tmp_path / name, name)
                bench.registry.register(name, replace(bench.source(name), expected_digest=digest))
            write_adapter(tmp_path / "torn", "other weights")
            await loads.load_registered()
            assert changes == [["same"]]
            assert await bench.answer("same") == adapted_text(digest, 40)
            assert bench.registry.find("torn") is None
            await loads.unload("same", waits=True)
            assert changes == [["same"], []]

    run(body())
