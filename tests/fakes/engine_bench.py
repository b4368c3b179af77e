"""An engine loop in front of a fake shard, over real gRPC, with short calls for tests."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import uvloop
from textmill_router.engine.engine_loop import EngineLoop
from textmill_router.engine.replica_set import ReplicaSet
from textmill_router.engine.shard_client import ShardClientOptions
from textmill_router.engine.shard_facts import ShardFacts
from textmill_router.engine.shard_link import ShardLink
from textmill_router.engine.status import EnginePhase
from textmill_router.request import GenerationRequest, RequestOutput
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.plan import Budget
from textmill_router.text.events import GenerationResult, TextOptions
from textmill_router.text.generation import start_generation
from textmill_router.text.tokenization import Tokenizer

from tests.fakes.fake_shard import FakeShardOptions

LIMIT_S = 60.0
SMALL = FakeShardOptions(num_slots=8, num_blocks=512, max_step_tokens=512)


class Bench:
    """An engine that is connected to a fake shard, with short calls for tests."""

    def __init__(self, engine: EngineLoop | ReplicaSet, tokenizer: Tokenizer) -> None:
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
        """Read the events of a request, and check that they give the text of the result, each index once."""
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
        """Wait until no request runs, waits or leaves, and all slots and blocks are free."""

        def check() -> bool:
            stats = self.engine.stats()
            assert stats is not None
            assert stats.num_free_blocks + stats.num_held_blocks + stats.num_cached_blocks == stats.num_blocks
            busy = stats.num_running + stats.num_waiting + stats.num_held_blocks
            return busy == 0 and stats.num_free_slots == stats.num_slots

        await until(check)


class NoReader:
    def on_output(self, output: RequestOutput) -> None:
        raise AssertionError(output)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the condition by a look each millisecond. `run` limits the time of the whole test."""
    while not condition():  # noqa: ASYNC110 (the conditions concern a thread)
        await asyncio.sleep(0.001)


def configure(facts: ShardFacts) -> SchedulerConfig:
    budget = Budget(facts.max_step_tokens, facts.max_step_tokens, facts.max_step_tokens // 4)
    return SchedulerConfig(budget, max_waiting_requests=256, max_waiting_tokens=10_000_000)


@asynccontextmanager
async def open_bench(
    uds_path: Path, tokenizer: Tokenizer, *, is_ready: bool = True, **options: float
) -> AsyncIterator[Bench]:
    client_options = replace(ShardClientOptions(ShardLink(str(uds_path)), health_poll_s=0.01), **options)  # type: ignore[arg-type]
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
