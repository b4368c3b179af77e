"""Streams that break, come back or do not fit, between the engine loop and the fake shard behind real gRPC."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from textmill_proto.v1 import shard_pb2
from textmill_router.engine.engine_loop import EngineLoop
from textmill_router.engine.shard_client import ShardClientOptions
from textmill_router.engine.shard_link import ShardLink
from textmill_router.engine.status import EnginePhase, EngineUnavailable
from textmill_router.request import FailureCode, GenerationParameters, SamplingParameters
from textmill_router.text.events import GenerationFailed
from textmill_router.text.tokenization import Tokenizer

from tests.fakes.engine_bench import SMALL, Bench, NoReader, alphabet, configure, open_bench, run, until
from tests.fakes.fake_shard import FakeShard, FakeShardOptions, alphabet_script
from tests.fakes.fake_slots import SlotTable


def test_rule_22_64_streams_of_long_prompts_survive_a_cut(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def all_decode(table: SlotTable) -> bool:
        """Return whether all requests decode, and then make steps fast.

        With fast steps before, the first requests would end while a busy machine still sends prompts.
        """
        if len(table.decodes) < 64:
            return False
        shard.step_s = 0.001
        return True

    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer, max_silence_s=30.0) as bench:
            shard.cut_when(all_decode)
            requests = [bench.request(index.to_bytes(2, "little") * 10_000, 200) for index in range(64)]
            results = await asyncio.gather(*(bench.generate(request) for request in requests))
            first, second = shard.history
            assert (first.num_admitted, len(first.decodes), shard.epoch) == (64, 64, 2)
            assert second.num_admitted == 64
            assert [result.text for result in results] == [alphabet(200)] * 64
            # Tokens of results that the cut has lost are sampled again, and each is seen once.
            assert 64 * 200 <= shard.num_sampled < 64 * 200 + first.num_sampled
            await bench.is_quiet()

    options = FakeShardOptions(num_slots=64, num_blocks=64 * 1300, max_step_tokens=65536, step_s=0.02, lease_s=30.0)
    with FakeShard(tmp_path / "s", options) as shard:
        run(body())


def test_requests_that_come_between_two_epochs_are_held(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            shard.load("weights", 0.5)
            shard.cut()
            await bench.engine.wait_for_phase(EnginePhase.LOST)
            task = asyncio.create_task(bench.generate())
            gone = asyncio.create_task(bench.generate())
            await asyncio.sleep(0)
            gone.cancel()
            shard.load(None)
            assert (await task).text == alphabet(40)
            assert shard.history[-1].num_admitted == 1

    with FakeShard(tmp_path / "s", SMALL) as shard:
        run(body())


def test_shard_process_that_comes_back_on_the_same_socket(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        first = FakeShard(tmp_path / "s", replace(SMALL, step_s=0.002))
        with first:
            engine = EngineLoop(
                ShardClientOptions(ShardLink(str(tmp_path / "s")), health_poll_s=0.01), configure, tokenizer.digest
            )
            await engine.start()
            await engine.wait_for_phase(EnginePhase.READY)
            bench = Bench(engine, tokenizer)
            task = asyncio.create_task(bench.generate())
            await until(lambda: first.num_sampled > 3)
            # The end of the shard waits for threads, and the loop must go on meanwhile.
            await asyncio.to_thread(first.__exit__, None, None, None)
        await engine.wait_for_phase(EnginePhase.LOST)
        with FakeShard(tmp_path / "s", SMALL):
            assert (await task).text == alphabet(40)
            await engine.stop()

    run(body())


def test_rule_21_silent_shard_is_given_up_and_found_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer, heartbeat_s=0.02, max_silence_s=0.2) as bench:
            task = asyncio.create_task(bench.generate())
            await until(lambda: shard.num_sampled >= 5)
            shard.stop_answering()
            await bench.engine.wait_for_phase(EnginePhase.LOST)
            assert "nothing heard" in (bench.engine.status.error or "")
            shard.answer_again()
            assert (await task).text == alphabet(40)
            assert shard.epoch >= 2

    with FakeShard(tmp_path / "s", replace(SMALL, step_s=0.01, heartbeat_s=0.05)) as shard:
        run(body())


def test_shard_that_says_no_hello_is_asked_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(
            tmp_path / "s", tokenizer, is_ready=False, hello_timeout_s=0.05, first_backoff_s=0.01
        ) as bench:
            await until(lambda: len(shard.history) + shard.num_refused_streams >= 2)
            shard.answer_again()
            await bench.engine.wait_for_phase(EnginePhase.READY)
            assert (await bench.generate()).text == alphabet(40)

    with FakeShard(tmp_path / "s", SMALL) as shard:
        shard.stop_answering()
        run(body())


@pytest.mark.parametrize(
    "first",
    [
        shard_pb2.FromShard(epoch=1),
        shard_pb2.FromShard(epoch=1, heartbeat=shard_pb2.Heartbeat()),
        shard_pb2.FromShard(epoch=1, result=shard_pb2.StepResult(step=1, slots=bytes(4), tokens=bytes(4), flags=b"\0")),
        # Longer than the 64 MiB that the router takes (rule 4).
        shard_pb2.FromShard(epoch=1, rejected=shard_pb2.PlanRejected(message="x" * (65 << 20))),
    ],
    ids=["nothing", "heartbeat", "result", "too long"],
)
def test_shard_whose_first_message_is_no_hello_is_asked_again(
    tmp_path: Path, tokenizer: Tokenizer, first: shard_pb2.FromShard
) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            assert (await bench.generate()).text == alphabet(40)

    with FakeShard(tmp_path / "s", SMALL) as shard:
        shard.begin_next_with(first)
        run(body())
        assert len(shard.history) == 2


def test_heartbeats_keep_an_idle_stream_beyond_lease_and_silence(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer, heartbeat_s=0.02, max_silence_s=0.4) as bench:
            end_s = time.monotonic() + 1.0  # more than twice lease and silence
            await until(lambda: time.monotonic() > end_s)
            assert (await bench.generate()).text == alphabet(40)
            assert shard.epoch == 1

    with FakeShard(tmp_path / "s", replace(SMALL, heartbeat_s=0.02, lease_s=0.4)) as shard:
        run(body())


def test_rule_21_second_router_is_refused_while_the_first_lives(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with (
            open_bench(tmp_path / "s", tokenizer) as first,
            open_bench(tmp_path / "s", tokenizer, is_ready=False, first_backoff_s=0.01, max_backoff_s=0.02) as second,
        ):
            await until(lambda: shard.num_refused_streams >= 13)  # the waits between two tries have stopped growing
            assert (await first.generate()).text == alphabet(40)
            with pytest.raises(EngineUnavailable):
                second.engine.submit(second.request(), NoReader())
            await first.engine.stop()
            await second.engine.wait_for_phase(EnginePhase.READY)
            assert (await second.generate()).text == alphabet(40)

    with FakeShard(tmp_path / "s", SMALL) as shard:
        run(body())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"tokenizer_digest": "00"}, "tokenizer 00"), ({"protocol_version": 99}, "protocol 99")],
)
def test_rule_22_shard_that_does_not_fit_stops_the_engine(
    tmp_path: Path, tokenizer: Tokenizer, changes: dict[str, object], reason: str
) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer, is_ready=False) as bench:
            status = await bench.engine.wait_for_phase(EnginePhase.STOPPED)
            assert reason in (status.error or "")
            with pytest.raises(EngineUnavailable, match=reason):
                bench.engine.submit(bench.request(), NoReader())

    with FakeShard(tmp_path / "s", replace(SMALL, **changes)):  # type: ignore[arg-type]
        run(body())


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"model_id": "other"},
        {"model_sha": "f00"},
        {"vocab_size": 259},
        {"tokenizer_digest": "00"},
        {"block_size": 32},
    ],
)
def test_rule_22_new_epoch_with_another_model_stops_the_engine(
    tmp_path: Path, tokenizer: Tokenizer, changes: dict[str, object]
) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            task = asyncio.create_task(bench.generate(bench.request(max_new_tokens=5000)))
            await until(lambda: shard.num_sampled > 0)
            shard.change_info(**changes)
            shard.cut()
            status = await bench.engine.wait_for_phase(EnginePhase.STOPPED)
            assert str(next(iter(changes.values()))) in (status.error or "")
            with pytest.raises(GenerationFailed) as caught:
                await task
            assert caught.value.failure.code is FailureCode.SHUTDOWN

    with FakeShard(tmp_path / "s", replace(SMALL, step_s=0.001)) as shard:
        run(body())


def test_rule_22_number_of_blocks_may_differ(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            task = asyncio.create_task(bench.generate(bench.request(max_new_tokens=200)))
            await until(lambda: shard.num_sampled > 0)
            shard.change_info(num_blocks=100)
            shard.cut()
            assert (await task).text == alphabet(200)
            facts = bench.engine.status.facts
            assert facts is not None
            assert facts.num_blocks == 100

    with FakeShard(tmp_path / "s", replace(SMALL, step_s=0.001)) as shard:
        run(body())


def test_rule_20_rejected_plan_fails_its_requests_and_no_others(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            others = [asyncio.create_task(bench.generate(bench.request(b"%d" % i, 100))) for i in range(3)]
            await until(lambda: shard.num_sampled > 0)
            shard.reject_next_admission()
            with pytest.raises(GenerationFailed, match="scripted rejection") as caught:
                await bench.generate()
            assert caught.value.failure.code is FailureCode.PLAN_REJECTED
            assert [result.text for result in await asyncio.gather(*others)] == [alphabet(100)] * 3
            assert shard.epoch == 2

    with FakeShard(tmp_path / "s", replace(SMALL, step_s=0.002)) as shard:
        run(body())


def test_rule_20_second_rejection_in_a_row_stops_the_engine(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            shard.reject_next_admission()
            with pytest.raises(GenerationFailed, match="refused"):
                await bench.generate()
            await bench.engine.wait_for_phase(EnginePhase.READY)
            shard.reject_next_admission("again")
            with pytest.raises(GenerationFailed):
                await bench.generate()
            status = await bench.engine.wait_for_phase(EnginePhase.STOPPED)
            assert "again" in (status.error or "")

    with FakeShard(tmp_path / "s", SMALL) as shard:
        run(body())


def test_plan_that_cannot_be_written_costs_its_request_and_no_other(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            seeded = GenerationParameters(sampling=SamplingParameters(seed=1 << 64))  # validation refuses such a seed
            unwritable = bench.request(parameters=seeded)
            others = [asyncio.create_task(bench.generate(bench.request(b"other", 40))) for _ in range(2)]
            with pytest.raises(GenerationFailed) as failed:
                await bench.generate(unwritable)
            assert failed.value.failure.code is FailureCode.INTERNAL
            assert "cannot be written to the shard" in failed.value.failure.message
            assert [(await other).text for other in others] == [alphabet(40)] * 2
            with pytest.raises(GenerationFailed):
                await bench.generate(replace(unwritable, request_id=bench.engine.next_request_id()))
            await bench.is_quiet()
            assert shard.epoch == 1

    with FakeShard(tmp_path / "s", SMALL) as shard:
        run(body())


def test_result_that_breaks_a_rule_begins_a_new_epoch_and_a_second_one_stops(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            for epoch in (2, 3):  # a request that finishes in between makes good for the broken rule
                shard.break_rule()
                assert (await bench.generate()).text == alphabet(40)
                assert shard.epoch == epoch
            shard.break_rule()
            task = asyncio.create_task(bench.generate(bench.request(max_new_tokens=5000)))
            await until(lambda: shard.epoch == 4)
            shard.break_rule()
            status = await bench.engine.wait_for_phase(EnginePhase.STOPPED)
            assert "nobody sits" in (status.error or "")
            with pytest.raises(GenerationFailed):
                await task

    with FakeShard(tmp_path / "s", replace(SMALL, step_s=0.001)) as shard:
        run(body())


def test_result_that_cannot_be_read_begins_a_new_epoch(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            task = asyncio.create_task(bench.generate())
            await until(lambda: shard.num_sampled >= 5)
            shard.garble_next_result()
            assert (await task).text == alphabet(40)
            assert shard.epoch == 2

    with FakeShard(tmp_path / "s", replace(SMALL, step_s=0.01)) as shard:
        run(body())


def test_rule_19_error_of_a_slot_ends_that_request_only(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            bad = bench.request(b"bad", 5000)
            tasks = [asyncio.create_task(bench.generate(r)) for r in (bad, bench.request(b"good", 100))]
            await until(lambda: len(shard.history[-1].decodes) == 2)
            shard.fail_slot(next(s.slot for s in shard.history[-1].seats.values() if s.request_id == bad.request_id))
            with pytest.raises(GenerationFailed, match="scripted fault") as caught:
                await tasks[0]
            assert caught.value.failure.code is FailureCode.NOT_FINITE
            assert (await tasks[1]).text == alphabet(100)
            await bench.is_quiet()

    with FakeShard(tmp_path / "s", replace(SMALL, step_s=0.002)) as shard:
        run(body())


def test_status_shows_the_phases_of_loading(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer, is_ready=False) as bench:
            assert bench.engine.status.phase is EnginePhase.STARTING
            with FakeShard(tmp_path / "s", SMALL) as shard:
                for phase in (EnginePhase.CONFIG, EnginePhase.WEIGHTS, EnginePhase.KV_POOL, EnginePhase.WARMUP):
                    shard.load(phase.value, 0.5)
                    status = await bench.engine.wait_for_phase(phase)
                    assert status.progress == 0.5
                shard.fail("no memory")
                await until(lambda: bench.engine.status.error == "no memory")
                shard.fail(None)
                shard.load(None)
                status = await bench.engine.wait_for_phase(EnginePhase.READY)
                assert status.facts is not None
                assert status.facts.num_slots == SMALL.num_slots
                assert status.error is None
                await bench.engine.stop()

    run(body())


def test_script_sees_the_outputs_of_a_readmitted_request(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The place in the script is a function of the Admit (rule 18), so a cut in the middle changes no token."""
    assert [alphabet_script((), index) for index in range(3)] == [97, 98, 99]

    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            for num_tokens in (1, 7, 16, 33):
                shard.cut_when(lambda table, limit=num_tokens: table.num_sampled >= limit)
                assert (await bench.generate()).text == alphabet(40)
            assert shard.epoch == 5

    with FakeShard(tmp_path / "s", SMALL) as shard:
        run(body())
