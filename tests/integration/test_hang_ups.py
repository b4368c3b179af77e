"""Clients that hang up do not disturb other clients, under preemption, on the demo model in fp32."""

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import httpx
import pytest

from tests.fakes.processes import LaunchedServer, launched, wait_until
from tests.fakes.reading import generate, metric

NUM_STREAMS = 32
SEED = 20_240_607
BLOCK_SIZE = 16
# 24 blocks of the demo model in fp32 (46,080 bytes a token) hold 384 tokens, for requests that need about 2,000. A
# request enters with places for its prompt and 64 tokens more, so several requests for LONG tokens outgrow the pool.
KV_BYTES = 24 * BLOCK_SIZE * 46_080
LONG = 100
LIMIT_S = 200.0
WORDS = (
    "river",
    "stone",
    "night",
    "garden",
    "letter",
    "engine",
    "winter",
    "seven",
    "silver",
    "bread",
    "window",
    "music",
)


class HangUp(Enum):
    """The moment at which a client leaves."""

    NEVER = "never"
    QUEUED = "queued"  # at once
    PREFILL = "prefill"  # after a moment, too short for its prompt
    DECODE = "decode"  # after its third token


@dataclass(frozen=True, slots=True)
class Visit:
    """One client: its request, and the moment at which it leaves."""

    prompt: str
    max_new_tokens: int
    is_streaming: bool
    hang_up: HangUp


def make_visits() -> list[Visit]:
    """Return clients of which a third hang up, in each of the three states, streamed or not, with mixed lengths.

    Clients that leave in prefill come first, because their requests enter at once and their prompts take a while. Then
    come clients with long answers, so that several answers grow side by side.
    """
    noise = random.Random(SEED)
    ways = [HangUp.QUEUED, HangUp.PREFILL, HangUp.DECODE, HangUp.DECODE]
    visits = []
    for number in range(NUM_STREAMS):
        hang_up = ways[(number // 3) % 4] if number % 3 == 0 else HangUp.NEVER
        is_long = number % 4 == 1
        num_words = 200 if hang_up is HangUp.PREFILL else noise.randint(4, 8 if is_long else 40)
        visits.append(
            Visit(
                prompt=" ".join(noise.choices(WORDS, k=num_words)),
                max_new_tokens=LONG if is_long else noise.choice((6, 10, 16, 24)),
                is_streaming=noise.random() < 0.5,
                hang_up=hang_up,
            )
        )
    return sorted(visits, key=lambda wish: (wish.hang_up is not HangUp.PREFILL, wish.max_new_tokens != LONG))


@pytest.fixture(scope="module")
def crowded_server(demo_model_folder: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchedServer]:
    arguments = ["--dtype", "float32", "--kv-cache-bytes", str(KV_BYTES)]
    with launched(arguments, tmp_path_factory.mktemp("crowded_server")) as server:
        yield server.wait_ready()


async def visit(client: httpx.AsyncClient, wish: Visit) -> tuple[int, ...] | None:
    """Ask, and return the ids, or None after hanging up."""
    body = {
        "inputs": wish.prompt,
        "parameters": {"max_new_tokens": wish.max_new_tokens, "do_sample": False, "details": True},
    }
    leave_after_s = {HangUp.QUEUED: 0.05, HangUp.PREFILL: 0.25}.get(wish.hang_up)
    if wish.hang_up is HangUp.DECODE and not wish.is_streaming:
        leave_after_s = 4.0  # without a stream a client cannot see its third token
    try:
        async with asyncio.timeout(leave_after_s):
            if wish.is_streaming:
                return await read_stream(client, body, leave_after_third=wish.hang_up is HangUp.DECODE)
            reply = await client.post("/generate", json=body)
            assert reply.status_code == 200, reply.text
            return tuple(token["id"] for token in reply.json()["details"]["tokens"])
    except TimeoutError:
        return None


async def read_stream(client: httpx.AsyncClient, body: object, leave_after_third: bool) -> tuple[int, ...] | None:
    ids: list[int] = []
    async with client.stream("POST", "/generate_stream", json=body) as reply:
        assert reply.status_code == 200
        async for line in reply.aiter_lines():
            if line.startswith("data:"):
                event = json.loads(line.removeprefix("data:"))
                assert event["index"] == len(ids) + 1
                ids.append(event["token"]["id"])
                if leave_after_third and len(ids) == 3:
                    return None
    return tuple(ids)


async def visit_all(server: LaunchedServer, visits: list[Visit]) -> list[tuple[int, ...] | None]:
    limits = httpx.Limits(max_connections=NUM_STREAMS)
    async with (
        asyncio.timeout(LIMIT_S),
        httpx.AsyncClient(base_url=server.base_url, timeout=LIMIT_S, limits=limits, trust_env=False) as client,
    ):
        return await asyncio.gather(*(visit(client, wish) for wish in visits))


def blocks(server: LaunchedServer, state: str) -> float:
    return metric(server, "textmill_kv_blocks", f'state="{state}"')


# Some 700 tokens alone, and again together, on two cores.
@pytest.mark.faults
@pytest.mark.slow
def test_those_who_stay_get_what_they_get_alone(crowded_server: LaunchedServer) -> None:
    visits = make_visits()
    assert sum(wish.hang_up is not HangUp.NEVER for wish in visits) in (10, 11)
    answers = asyncio.run(visit_all(crowded_server, visits))
    assert metric(crowded_server, "textmill_preemptions") > 0
    num_hung_up = sum(ids is None for ids in answers)
    num_soon = sum(wish.hang_up in (HangUp.QUEUED, HangUp.PREFILL) for wish in visits)
    assert num_hung_up >= 8

    def num_dropped() -> float:
        return metric(crowded_server, "tgi_request_failure", 'err="dropped"')

    def num_ended() -> float:
        return num_dropped() + metric(crowded_server, "tgi_request_success")

    wait_until(lambda: num_ended() == metric(crowded_server, "tgi_request_count"), 30, "every call has ended")
    # On a busy machine a client that leaves soon may leave before the server has its request.
    num_unheard = NUM_STREAMS - metric(crowded_server, "tgi_request_count")
    assert 0 <= num_unheard <= num_soon
    assert num_hung_up - num_unheard <= num_dropped() <= num_hung_up
    wait_until(lambda: metric(crowded_server, "textmill_requests_running") == 0, 30, "no request runs")
    wait_until(
        lambda: metric(crowded_server, "textmill_slots_free") == metric(crowded_server, "textmill_slots_size"),
        30,
        "all slots are free",
    )
    assert metric(crowded_server, "textmill_requests_waiting") == 0
    assert blocks(crowded_server, "held") == 0
    in_all = metric(crowded_server, "textmill_kv_blocks_size")
    assert blocks(crowded_server, "free") + blocks(crowded_server, "cached") == in_all

    for wish, ids in zip(visits, answers, strict=True):
        if wish.hang_up is HangUp.NEVER:
            assert ids == generate(crowded_server, wish.prompt, max_new_tokens=wish.max_new_tokens).ids
