"""Engine loop, stream and text against the fake shard behind real gRPC. Numbers are rules of the stream."""

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop
from textmill_router.engine_loop import EngineLoop, EnginePhase, EngineUnavailable
from textmill_router.generation import GenerationFailed, GenerationResult, TextOptions, start_generation
from textmill_router.plan import Budget
from textmill_router.request import FailureCode, FinishReason, GenerationRequest, RequestId, RequestOutput
from textmill_router.scheduler import QueueFull, SchedulerConfig
from textmill_router.shard_client import ShardClientOptions
from textmill_router.tokenization import Tokenizer
from textmill_router.wire import ShardFacts

from tests.fakes.byte_tokenizer import END_ID, write_byte_tokenizer
from tests.fakes.fake_shard import FakeShard, FakeShardOptions, alphabet_script, text_script

LIMIT_S = 60.0
SMALL = FakeShardOptions(num_slots=8, num_blocks=512, max_step_tokens=512)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_byte_tokenizer(tmp_path_factory.mktemp("model")))


class Bench:
    """A fake shard, an engine that looks for it, and short words for both."""

    def __init__(self, engine: EngineLoop, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self.tokenizer = tokenizer

    def request(self, prompt: bytes = b"hello", max_new_tokens: int = 40, **changes: object) -> GenerationRequest:
        request = GenerationRequest(
            self.engine.next_request_id(), array("I", list(prompt)), max_new_tokens, self.engine.now()
        )
        return replace(request, **changes)  # type: ignore[arg-type]

    async def generate(
        self, request: GenerationRequest | None = None, options: TextOptions | None = None
    ) -> GenerationResult:
        """Reads the events and checks that they are the result, each index once."""
        request = request or self.request()
        async with start_generation(self.engine, self.tokenizer, request, options or TextOptions()) as generation:
            events = await generation.next_events()
            while events[-1].result is None:
                events += await generation.next_events()
            result = await generation.result()
        assert [event.index for event in events] == list(range(1, result.num_output_tokens + 1))
        assert "".join(event.released_text for event in events) == result.text
        return result

    async def is_quiet(self) -> None:
        """Waits until nothing runs, waits or leaves, and all slots and blocks are free."""

        def check() -> bool:
            stats = self.engine.stats()
            assert stats is not None
            assert stats.num_free_blocks + stats.num_held_blocks + stats.num_cached_blocks == stats.num_blocks
            busy = stats.num_running + stats.num_waiting + stats.num_leaving + stats.num_held_blocks
            return busy == 0 and stats.num_free_slots == stats.num_slots

        await until(check)


async def until(condition: Callable[[], bool]) -> None:
    """Polls the condition each millisecond; the whole test has a limit."""
    while not condition():  # noqa: ASYNC110 (the conditions concern a thread)
        await asyncio.sleep(0.001)


def configure(facts: ShardFacts) -> SchedulerConfig:
    budget = Budget(facts.max_step_tokens, facts.max_step_tokens, facts.max_step_tokens // 4)
    return SchedulerConfig(budget, max_waiting_requests=256, max_waiting_tokens=10_000_000)


@asynccontextmanager
async def open_bench(
    uds_path: Path, tokenizer: Tokenizer, *, is_ready: bool = True, **options: float
) -> AsyncIterator[Bench]:
    client_options = replace(ShardClientOptions(str(uds_path), health_poll_s=0.01), **options)  # type: ignore[arg-type]
    engine = EngineLoop(client_options, configure, tokenizer.digest)
    await engine.start()
    try:
        if is_ready:
            await engine.wait_for_phase(EnginePhase.READY)
        yield Bench(engine, tokenizer)
    finally:
        await engine.stop()


def run(body: Awaitable[None]) -> None:
    async def main() -> None:
        await asyncio.wait_for(body, LIMIT_S)

    uvloop.run(main())  # the loop that the router runs on


def alphabet(length: int) -> str:
    return "".join(chr(97 + index % 26) for index in range(length))


def test_text_of_many_streams_is_the_script(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            lengths = [1 + 7 * index for index in range(20)]
            results = await asyncio.gather(
                *(bench.generate(bench.request(b"p%d" % length, length)) for length in lengths)
            )
            assert [result.text for result in results] == [alphabet(length) for length in lengths]
            assert {result.finish_reason for result in results} == {FinishReason.LENGTH}
            await bench.is_quiet()

    with FakeShard(tmp_path / "s", SMALL):
        run(body())


def test_rule_4_arrivals_of_one_turn_are_one_plan(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            await until(lambda: bool(shard.history) and shard.history[-1].plan_applied >= 1)  # the budget
            shard.pause()
            tasks = [asyncio.create_task(bench.generate(bench.request(b"x%d" % i, 3))) for i in range(64)]
            await until(lambda: shard.history[-1].num_admitted == 64)
            shard.resume()
            await asyncio.gather(*tasks)
            assert shard.history[-1].num_admitting_plans == 1

    with FakeShard(tmp_path / "s", replace(SMALL, num_slots=64)) as shard:
        run(body())


def test_rule_4_request_cancelled_at_once_is_in_no_plan(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            async with start_generation(bench.engine, tokenizer, bench.request(), TextOptions()):
                pass
            await bench.generate()
            assert shard.history[-1].num_admitted == 1
            assert shard.history[-1].num_dropped == 0

    with FakeShard(tmp_path / "s", SMALL) as shard:
        run(body())


def test_eos_ends_the_text_and_is_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            result = await bench.generate()
            assert (result.text, result.finish_reason) == ("héllo 日本 😀", FinishReason.EOS)
            assert result.num_output_tokens == len("héllo 日本 😀".encode()) + 1

    with FakeShard(tmp_path / "s", replace(SMALL, script=text_script("héllo 日本 😀", END_ID))):
        run(body())


def test_stop_string_drops_the_slot(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            result = await bench.generate(bench.request(max_new_tokens=2000), TextOptions(stop_strings=("xyz",)))
            assert (result.text, result.finish_reason) == (alphabet(26), FinishReason.STOP_STRING)
            await bench.is_quiet()
            assert shard.history[-1].num_dropped == 1

    with FakeShard(tmp_path / "s", replace(SMALL, step_s=0.001)) as shard:
        run(body())


def test_cancel_frees_slot_and_blocks_in_decode_in_prefill_and_in_the_queue(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            decoding = asyncio.create_task(bench.generate(bench.request(max_new_tokens=5000)))
            await until(lambda: bool(shard.history) and len(shard.history[-1].decodes) == 1)
            prefilling = asyncio.create_task(bench.generate(bench.request(b"long" * 700)))
            await until(lambda: len(shard.history[-1].prefills) == 1)
            shard.pause()
            queued = asyncio.create_task(bench.generate(bench.request(b"q")))
            stats = bench.engine.stats()
            await until(lambda: (stats := bench.engine.stats()) is not None and stats.num_waiting == 1)
            assert stats is not None
            for task in (decoding, prefilling, queued):
                task.cancel()
            await asyncio.gather(decoding, prefilling, queued, return_exceptions=True)
            shard.resume()
            await bench.is_quiet()
            assert shard.history[-1].num_dropped == 2
            assert shard.history[-1].num_admitted == 2

    # Slow steps of few tokens: a prompt of 2,800 tokens is in prefill for seconds.
    options = replace(SMALL, num_slots=2, max_step_tokens=64, step_s=0.02)
    with FakeShard(tmp_path / "s", options) as shard:
        run(body())


def test_rule_22_64_streams_of_long_prompts_survive_a_cut(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            shard.cut_when(lambda table: len(table.decodes) == 64)
            requests = [bench.request(index.to_bytes(2, "little") * 10_000, 200) for index in range(64)]
            results = await asyncio.gather(*(bench.generate(request) for request in requests))
            first, second = shard.history
            assert (first.num_admitted, len(first.decodes), shard.epoch) == (64, 64, 2)
            assert second.num_admitted == 64
            assert [result.text for result in results] == [alphabet(200)] * 64
            # Results that were on their way at the cut are sampled again and seen once.
            assert 64 * 200 <= shard.num_sampled < 64 * 200 + first.num_sampled
            await bench.is_quiet()

    options = FakeShardOptions(num_slots=64, num_blocks=64 * 1300, max_step_tokens=65536, step_s=0.001)
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
                ShardClientOptions(str(tmp_path / "s"), health_poll_s=0.01), configure, tokenizer.digest
            )
            await engine.start()
            await engine.wait_for_phase(EnginePhase.READY)
            bench = Bench(engine, tokenizer)
            task = asyncio.create_task(bench.generate())
            await until(lambda: first.num_sampled > 3)
            # Leaving waits for threads; the loop must go on meanwhile.
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
            open_bench(tmp_path / "s", tokenizer, is_ready=False) as second,
        ):
            await until(lambda: shard.num_refused_streams >= 2)
            assert (await first.generate()).text == alphabet(40)
            with pytest.raises(EngineUnavailable):
                second.engine.submit(second.request(), NoReader())
            await first.engine.stop()
            await second.engine.wait_for_phase(EnginePhase.READY)
            assert (await second.generate()).text == alphabet(40)

    with FakeShard(tmp_path / "s", SMALL) as shard:
        run(body())


class NoReader:
    def on_output(self, output: RequestOutput) -> None:
        raise AssertionError(output)


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
    "changes", [{"dtype": "bfloat16"}, {"model_id": "other"}, {"tokenizer_digest": "00"}, {"block_size": 32}]
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


def test_result_that_breaks_a_rule_begins_a_new_epoch_and_a_second_one_stops(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            for epoch in (2, 3):  # a request that finishes in between forgives
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


def test_logprobs_top_tokens_and_prompt_logprobs_come_through(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            wishes = {"wants_logprobs": True, "top_n_tokens": 2, "wants_prompt_logprobs": True}
            request = bench.request(b"p" * 700, 3, prompt_top_n_tokens=1, **wishes)
            plain = bench.generate(bench.request(b"other", 3))
            result, _ = await asyncio.gather(bench.generate(request), plain)
            assert [event.logprob for event in result.tokens] == [-0.5] * 3
            assert [[(t.text, t.logprob) for t in event.top_tokens] for event in result.tokens] == [
                [("a", -0.5), ("b", -1.5)],
                [("b", -0.5), ("c", -1.5)],
                [("c", -0.5), ("d", -1.5)],
            ]
            assert [token.logprob for token in result.prompt_tokens] == [None] + [-1.0] * 699
            assert [len(token.top_tokens) for token in result.prompt_tokens] == [0] + [1] * 699

    with FakeShard(tmp_path / "s", replace(SMALL, max_step_tokens=128)):
        run(body())


def test_second_prompt_finds_the_first_in_the_prefix_cache(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            prompt = bytes(range(1, 101))
            assert (await bench.generate(bench.request(prompt, 5))).num_cached_tokens == 0
            result = await bench.generate(bench.request(prompt, 5))
            assert (result.num_cached_tokens, result.text) == (96, alphabet(5))

    with FakeShard(tmp_path / "s", SMALL):
        run(body())


def test_full_queue_refuses(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            shard.pause()
            generations = [bench.request(b"%d" % i) for i in range(256)]
            for request in generations:
                bench.engine.submit(request, Ignore())
            with pytest.raises(QueueFull):
                bench.engine.submit(bench.request(), NoReader())

    with FakeShard(tmp_path / "s", SMALL) as shard:
        run(body())


class Ignore:
    def on_output(self, output: RequestOutput) -> None:
        pass


def test_plan_of_a_result_leaves_before_its_tokens_are_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    class SlowReader:
        def on_output(self, output: RequestOutput) -> None:
            """Holds the loop until the shard has the next request, or for so long that it never will."""
            end_s = time.monotonic() + 5.0
            while shard.history[-1].num_admitted < 2 and time.monotonic() < end_s:
                time.sleep(0.001)
            seen.append(shard.history[-1].num_admitted)

    seen: list[int] = []

    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            bench.engine.submit(bench.request(max_new_tokens=1), SlowReader())
            await bench.generate(bench.request(b"next", 1))
            assert seen == [2]

    with FakeShard(tmp_path / "s", replace(SMALL, num_slots=1)) as shard:
        run(body())


def test_reader_that_raises_ends_its_own_request_only(tmp_path: Path, tokenizer: Tokenizer) -> None:
    class Faulty:
        def __init__(self) -> None:
            self.outputs: list[RequestOutput] = []

        def on_output(self, output: RequestOutput) -> None:
            self.outputs.append(output)
            raise KeyError("fault in the reader")

    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            faulty = Faulty()
            bench.engine.submit(bench.request(b"faulty"), faulty)
            assert (await bench.generate()).text == alphabet(40)
            failure = faulty.outputs[-1].failure
            assert failure is not None
            assert failure.code is FailureCode.INTERNAL
            assert len(faulty.outputs) == 2
            await bench.is_quiet()

    with FakeShard(tmp_path / "s", SMALL):
        run(body())


def test_reader_may_cancel_another_request(tmp_path: Path, tokenizer: Tokenizer) -> None:
    class Canceller:
        def on_output(self, output: RequestOutput) -> None:
            bench_of[0].engine.cancel(other_of[0].request_id)

    bench_of: list[Bench] = []
    other_of: list[GenerationRequest] = []

    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            bench_of.append(bench)
            canceller = bench.request(b"canceller")
            other_of.append(bench.request(b"other"))
            bench.engine.submit(canceller, Canceller())
            bench.engine.submit(other_of[0], NoReader())  # same step, behind the canceller
            assert (await bench.generate()).text == alphabet(40)  # and this one behind both
            await bench.is_quiet()

    with FakeShard(tmp_path / "s", SMALL):
        run(body())


def test_stop_fails_what_still_runs(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            task = asyncio.create_task(bench.generate(bench.request(max_new_tokens=5000)))
            await until(lambda: shard.num_sampled > 0)
            await bench.engine.stop()
            with pytest.raises(GenerationFailed) as caught:
                await task
            assert caught.value.failure.code is FailureCode.SHUTDOWN
            bench.engine.cancel(RequestId(1))  # ended already: nothing happens
            await until(lambda: shard.epoch == 0)

    with FakeShard(tmp_path / "s", replace(SMALL, step_s=0.002)) as shard:
        run(body())


def test_script_sees_the_outputs_of_a_readmitted_request(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Rule 18: the place in the script is a function of the Admit, so a cut in the middle changes nothing."""
    assert [alphabet_script((), index) for index in range(3)] == [97, 98, 99]

    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            for num_tokens in (1, 7, 16, 33):
                shard.cut_when(lambda table, limit=num_tokens: table.num_sampled >= limit)
                assert (await bench.generate()).text == alphabet(40)
            assert shard.epoch == 5

    with FakeShard(tmp_path / "s", SMALL) as shard:
        run(body())
