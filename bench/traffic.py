"""The arrival of requests: a closed loop (so many at once) or an open loop (at random, whatever the server does)."""

import asyncio
import random
import time
from collections.abc import Sequence

from bench.dialects import Dialect, GenerationWish
from bench.http_stream import StreamRecord, stream_once


async def closed_loop(
    url: str, dialect: Dialect, wishes: Sequence[GenerationWish], *, concurrency: int
) -> list[StreamRecord]:
    """Run `concurrency` clients, each of which sends its next request when its last request has ended."""
    waiting = iter(wishes)
    records: list[StreamRecord] = []

    async def client() -> None:
        for wish in waiting:
            records.append(await stream_once(url, dialect, wish))

    await asyncio.gather(*(client() for _ in range(min(concurrency, len(wishes)))))
    return records


async def open_loop(
    url: str, dialect: Dialect, wishes: Sequence[GenerationWish], *, rate_per_s: float, seed: int
) -> list[StreamRecord]:
    """Send requests as a Poisson process: the gaps are independent and exponential, with a mean of 1 / rate."""
    gaps = random.Random(seed)
    tasks: list[asyncio.Task[StreamRecord]] = []
    due_s = time.perf_counter()
    for wish in wishes:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(stream_once(url, dialect, wish, due_s=due_s)))
        due_s += gaps.expovariate(rate_per_s)
    return list(await asyncio.gather(*tasks))
