"""Requests through engine loop, stream and text, with the fake shard behind real gRPC."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from textmill_router.request import FailureCode, FinishReason, GenerationRequest, RequestId, RequestOutput
from textmill_router.scheduler.scheduler import QueueFull
from textmill_router.text.events import GenerationFailed, TextOptions
from textmill_router.text.generation import start_generation
from textmill_router.text.tokenization import Tokenizer

from tests.fakes.byte_tokenizer import END_ID
from tests.fakes.engine_bench import SMALL, Bench, NoReader, alphabet, open_bench, run, until
from tests.fakes.fake_shard import FakeShard, text_script


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

    # Steps are slow and small, so that a prompt of 2,800 tokens is in prefill for seconds.
    options = replace(SMALL, num_slots=2, max_step_tokens=64, step_s=0.02)
    with FakeShard(tmp_path / "s", options) as shard:
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


class Ignore:
    def on_output(self, output: RequestOutput) -> None:
        pass


def test_full_queue_refuses(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_bench(tmp_path / "s", tokenizer) as bench:
            shard.pause()
            # 256 wait at most, beside as many as the free slots will take.
            generations = [bench.request(b"%d" % i) for i in range(256 + SMALL.num_slots)]
            for request in generations:
                bench.engine.submit(request, Ignore())
            with pytest.raises(QueueFull):
                bench.engine.submit(bench.request(), NoReader())

    with FakeShard(tmp_path / "s", SMALL) as shard:
        run(body())


def test_plan_of_a_result_leaves_before_its_tokens_are_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    class SlowReader:
        def on_output(self, output: RequestOutput) -> None:
            """Hold the loop until the shard has the next request, for at most five seconds."""
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
            bench.engine.submit(other_of[0], NoReader())  # gets its token in the same step, after the canceller
            assert (await bench.generate()).text == alphabet(40)  # gets its token after both
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
            bench.engine.cancel(RequestId(1))  # has ended before, so the call does nothing
            await until(lambda: shard.epoch == 0)

    with FakeShard(tmp_path / "s", replace(SMALL, step_s=0.002)) as shard:
        run(body())
