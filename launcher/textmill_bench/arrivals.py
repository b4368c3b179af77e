"""When requests are sent: so many at once, or at random, whatever the server does."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator

from textmill_bench.client import Record

# Sends the next request; its argument is the time at which the request was due, None: now.
SendNext = Callable[[float | None], Awaitable[Record]]
OnRecord = Callable[[Record], None]


async def closed_loop(send_next: SendNext, on_record: OnRecord, *, concurrency: int, num_requests: int) -> None:
    """Run `concurrency` clients, each of which sends its next request when its last request has ended."""
    left = iter(range(num_requests))

    async def client() -> None:
        for _ in left:
            on_record(await send_next(None))

    await asyncio.gather(*(client() for _ in range(min(concurrency, num_requests))))


def poisson_times(rate_per_s: float, seed: int) -> Iterator[float]:
    """Yield the seconds, from 0 on, at which the requests of a Poisson process are due.

    The gaps are independent and exponential with a mean of 1 / rate.
    """
    gaps = random.Random(seed)
    due_s = 0.0
    while True:
        yield due_s
        due_s += gaps.expovariate(rate_per_s)


async def open_loop(
    send_next: SendNext, on_record: OnRecord, *, rate_per_s: float, num_requests: int, seed: int
) -> None:
    """Send each request when it is due, whatever the server does, and wait for all answers."""
    begin_s = time.perf_counter()

    async def send(due_s: float) -> None:
        on_record(await send_next(due_s))

    async with asyncio.TaskGroup() as group:
        for _, after_s in zip(range(num_requests), poisson_times(rate_per_s, seed), strict=False):
            due_s = begin_s + after_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            group.create_task(send(due_s))
