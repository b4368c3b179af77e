"""Images between the engine and fake shards behind real gRPC: the order of the calls, lost shards, several replicas."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from textmill_router.engine.replica_set import ReplicaSet
from textmill_router.engine.shard_client import ShardClientOptions
from textmill_router.engine.shard_link import ShardLink
from textmill_router.engine.status import EnginePhase
from textmill_router.media.media_item import MediaItem, TensorPart
from textmill_router.request import FailureCode, GenerationRequest
from textmill_router.text.events import GenerationFailed
from textmill_router.text.tokenization import Tokenizer

from tests.fakes.engine_bench import SMALL, Bench, alphabet, configure, run, until
from tests.fakes.fake_shard import FakeShard, FakeShardOptions
from tests.fakes.media_items import image_digest, make_image

PICTURED = replace(SMALL, media_kinds=("llava",), media_cache_bytes=16_000_000)
PROMPT = b"ab" + b"I" * 30 + b"cd"  # the image is I
A_PUT = f"put {image_digest('a').hex()}"


class ImageBench(Bench):
    """An engine of replicas whose model takes images."""

    def __init__(self, engine: ReplicaSet, tokenizer: Tokenizer) -> None:
        super().__init__(engine, tokenizer)
        self.replicas = engine
        self.num_prepared = 0

    def image(self, name: str) -> MediaItem:
        def note() -> None:
            self.num_prepared += 1

        return make_image(name, 2, 30, num_tensor_bytes=3_000_000, prepare=note)

    def pictured(self, *names: str, max_new_tokens: int = 10, prompt: bytes = PROMPT) -> GenerationRequest:
        images = tuple(self.image(name) for name in names)
        return self.request(prompt, max_new_tokens, media=images)


def num_tasks(name: str) -> int:
    """Return the number of tasks that run this method."""
    coroutines = [task.get_coro() for task in asyncio.all_tasks()]
    return sum(getattr(coroutine, "__qualname__", "") == f"MediaBringer.{name}" for coroutine in coroutines)


@asynccontextmanager
async def open_images(
    tokenizer: Tokenizer, folder: Path, options: Sequence[FakeShardOptions] = (PICTURED,)
) -> AsyncIterator[tuple[ImageBench, list[FakeShard]]]:
    paths = [folder / f"s{number}" for number in range(len(options))]
    shards = [FakeShard(path, one) for path, one in zip(paths, options, strict=True)]
    links = [ShardClientOptions(ShardLink(str(path)), health_poll_s=0.01) for path in paths]
    engine = ReplicaSet(links, configure, tokenizer.digest)
    for shard in shards:
        shard.__enter__()
    await engine.start()
    try:
        await until(lambda: all(one.status.phase is EnginePhase.READY for one in engine.replicas))
        yield ImageBench(engine, tokenizer), shards
    finally:
        await engine.stop()
        await until(lambda: not num_tasks("_bring") + num_tasks("_put"))
        for shard in shards:
            shard.__exit__(None, None, None)


def test_rule_33_an_image_is_asked_for_then_put_then_admitted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_images(tokenizer, tmp_path) as (bench, [shard]):
            result = await bench.generate(bench.pictured("a"))
            assert result.text == alphabet(10)
            assert shard.media_calls == ["has 1", A_PUT, "admit"]
            assert shard.last_admit is not None
            assert [(span.digest, span.start, span.num_tokens) for span in shard.last_admit.media] == [
                (image_digest("a"), 2, 30)
            ]
            # Another prompt with the image: nothing is prepared and nothing is sent.
            await bench.generate(bench.pictured("a", prompt=b"xy" + PROMPT[2:]))
            assert shard.media_calls[3:] == ["has 1", "admit"]
            # The same prompt again: the cached blocks cover the image.
            await bench.generate(bench.pictured("a", prompt=PROMPT + b" and so on"))
            assert shard.media_calls[5:] == ["admit"]
            counts = bench.replicas.replicas[0].media_counts
            assert (counts.num_puts, counts.num_hits, counts.num_put_bytes) == (1, 1, 3_000_000)
            assert bench.num_prepared == 1
            await bench.is_quiet()

    run(body())


def test_rule_33_an_image_that_was_read_just_now_is_put_unasked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_images(tokenizer, tmp_path, [replace(PICTURED, step_s=0.005)]) as (bench, [shard]):
            new = replace(bench.image("a"), is_new=True)
            shard.cut_when(lambda table: table.num_sampled >= 5)
            await bench.generate(bench.request(PROMPT, 20, media=(new,)))
            # The second epoch asks, because the shard has heard of the image.
            assert shard.media_calls == [A_PUT, "admit", "has 1", "admit"]
            both = (new, replace(make_image("b", 32, 4), is_new=True))
            await bench.generate(bench.request(b"xy" + PROMPT[2:], 5, media=both))
            assert shard.media_calls[4] == "has 1"
            assert [call for call in shard.media_calls[5:] if call != "admit"] == ["put " + image_digest("b").hex()]
            assert bench.replicas.replicas[0].media_counts.num_hits == 2

    run(body())


def test_texts_go_on_while_an_image_is_on_its_way_and_an_image_is_put_once(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def body() -> None:
        async with open_images(tokenizer, tmp_path) as (bench, [shard]):
            shard.pause_puts()
            first = asyncio.create_task(bench.generate(bench.pictured("a")))
            second = asyncio.create_task(bench.generate(bench.pictured("a", prompt=b"xy" + PROMPT[2:])))
            await until(lambda: A_PUT in shard.media_calls)
            assert (await bench.generate(bench.request(b"text", 5))).text == alphabet(5)
            assert not first.done()
            shard.resume_puts()
            assert [(await task).text for task in (first, second)] == [alphabet(10)] * 2
            assert shard.media_calls.count(A_PUT) == 1
            # Each request has asked once for itself, and the one that did not put the image has a lease of its own.
            assert shard.media_calls.count("has 1") == 3

    run(body())


def test_rule_22_a_new_epoch_puts_what_is_gone_before_it_admits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The shard loses its images with the stream, as a process that starts again does."""

    async def body() -> None:
        async with open_images(tokenizer, tmp_path, [replace(PICTURED, step_s=0.005)]) as (bench, [shard]):
            shard.cut_when(lambda table: table.num_sampled >= 5 and not shard.media.clear())
            assert (await bench.generate(bench.pictured("a", max_new_tokens=20))).text == alphabet(20)
            assert shard.media_calls == ["has 1", A_PUT, "admit"] * 2
            assert bench.num_prepared == 2

    run(body())


def test_rule_22_a_new_epoch_of_a_shard_that_kept_its_images_only_asks(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_images(tokenizer, tmp_path, [replace(PICTURED, step_s=0.005)]) as (bench, [shard]):
            shard.cut_when(lambda table: table.num_sampled >= 5)
            assert (await bench.generate(bench.pictured("a", max_new_tokens=20))).text == alphabet(20)
            assert shard.media_calls == ["has 1", A_PUT, "admit", "has 1", "admit"]
            assert bench.num_prepared == 1

    run(body())


def test_a_shard_that_dies_during_a_put_gets_the_image_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_images(tokenizer, tmp_path) as (bench, [shard]):
            shard.pause_puts()
            task = asyncio.create_task(bench.generate(bench.pictured("a")))
            await until(lambda: A_PUT in shard.media_calls)
            shard.cut()
            await until(lambda: bench.engine.status.phase is not EnginePhase.READY)
            await asyncio.sleep(0)  # a turn of the loop, in which cancelled tasks end
            assert not num_tasks("_bring") + num_tasks("_put")
            shard.resume_puts()
            shard.media.clear()
            assert (await task).text == alphabet(10)
            assert shard.media_calls[-1] == "admit"
            await bench.is_quiet()

    run(body())


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
def test_a_put_that_fails_for_a_moment_is_tried_again(
    code: grpc.StatusCode, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def body() -> None:
        async with open_images(tokenizer, tmp_path) as (bench, [shard]):
            shard.refuse_media[image_digest("a")] = (code, "not now")
            assert (await bench.generate(bench.pictured("a"))).text == alphabet(10)
            assert shard.media_calls.count(A_PUT) == 2

    run(body())


def test_an_image_that_the_shard_refuses_fails_its_request_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_images(tokenizer, tmp_path) as (bench, [shard]):
            shard.refuse_media[image_digest("a")] = (grpc.StatusCode.INVALID_ARGUMENT, "pixel_values has 3 dimensions")
            beside = asyncio.create_task(bench.generate(bench.pictured("b")))
            with pytest.raises(GenerationFailed) as caught:
                await bench.generate(bench.pictured("a"))
            assert caught.value.failure.code is FailureCode.MEDIA
            assert caught.value.failure.message == "pixel_values has 3 dimensions"
            assert (await beside).text == alphabet(10)
            await bench.is_quiet()

    run(body())


def test_an_image_that_cannot_be_prepared_fails_its_request_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def fail() -> tuple[TensorPart, ...]:
        raise ValueError("the worker died")

    async def body() -> None:
        async with open_images(tokenizer, tmp_path) as (bench, _):
            request = bench.pictured("a")
            request = replace(request, media=(replace(request.media[0], prepare=fail),))
            with pytest.raises(GenerationFailed) as caught:
                await bench.generate(request)
            assert caught.value.failure.code is FailureCode.MEDIA
            assert "could not be read again: the worker died" in caught.value.failure.message
            await bench.is_quiet()

    run(body())


def test_an_image_that_is_gone_at_the_admission_fails_its_request(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_images(tokenizer, tmp_path) as (bench, [shard]):
            shard.forgets_media = True  # the shard says that it has the image, and has none
            with pytest.raises(GenerationFailed) as caught:
                await bench.generate(bench.pictured("a"))
            assert (caught.value.failure.code, caught.value.failure.message) == (
                FailureCode.MEDIA,
                "an image is gone",
            )
            await bench.is_quiet()

    run(body())


def test_a_client_that_leaves_takes_its_wish_for_images_along(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_images(tokenizer, tmp_path) as (bench, [shard]):
            shard.pause_puts()
            task = asyncio.create_task(bench.generate(bench.pictured("a")))
            await until(lambda: A_PUT in shard.media_calls)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: not num_tasks("_bring"))
            shard.resume_puts()
            await bench.is_quiet()
            assert (await bench.generate(bench.request(b"text", 5))).text == alphabet(5)
            assert "admit" not in shard.media_calls

    run(body())


def test_rule_22_requests_of_a_lost_replica_bring_their_images_to_another(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        options = [replace(PICTURED, step_s=0.005)] * 2
        async with open_images(tokenizer, tmp_path, options) as (bench, shards):
            task = asyncio.create_task(bench.generate(bench.pictured("a", max_new_tokens=60)))
            await until(lambda: any(shard.num_sampled > 5 for shard in shards))
            lost = next(shard for shard in shards if shard.num_sampled)
            other = next(shard for shard in shards if shard is not lost)
            lost.load("weights", 0.5)  # so that the replica does not come back at once
            lost.cut()
            assert (await task).text == alphabet(60)
            assert other.media_calls == ["has 1", A_PUT, "admit"]

    run(body())


def test_the_heartbeats_tell_of_kept_bytes_and_encodes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def body() -> None:
        async with open_images(tokenizer, tmp_path) as (bench, _):
            engine = bench.replicas.replicas[0]
            for kept_bytes, num_encodes in ((100, 5), (80, 7), (0, 2), (9, 2)):  # the third is of a new process
                engine.on_heartbeat(overdue_s=0.0, media_bytes=kept_bytes, num_media_encodes=num_encodes)
            assert (engine.media_counts.num_kept_bytes, engine.media_counts.num_encodes) == (9, 5 + 2 + 2)

    run(body())
