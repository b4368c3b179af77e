"""A client of whole answers that keeps its connections and reads nothing of the bodies, because it shares the cores."""

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools


@dataclass(slots=True)
class Calls:
    """The calls of one measurement: the seconds of each that was answered 200, and how many were not."""

    seconds: float = 0.0
    times_s: list[float] = field(default_factory=list)
    num_failed: int = 0


class _Connection(asyncio.Protocol):
    """One caller, who sends the next body when the answer before is whole, until there is none or the time is over."""

    def __init__(self, head: bytes, bodies: Iterator[bytes], calls: Calls, end_s: float) -> None:
        self._head = head
        self._bodies = bodies
        self._calls = calls
        self._end_s = end_s
        self._parser = httptools.HttpResponseParser(self)
        self._sent_s = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        now_s = time.perf_counter()
        if self._parser.get_status_code() == 200:
            self._calls.times_s.append(now_s - self._sent_s)
        else:
            self._calls.num_failed += 1
        self._parser = httptools.HttpResponseParser(self)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._calls.num_failed += 1
            self.done.set_result(None)

    def _send(self) -> None:
        body = next(self._bodies, None) if time.perf_counter() < self._end_s else None
        if body is None:
            if not self.done.done():
                self.done.set_result(None)
            self._transport.close()
            return
        self._sent_s = time.perf_counter()
        self._transport.write(self._head + b"content-length: %d\r\n\r\n" % len(body) + body)


async def closed_loop(url: str, path: str, bodies: Sequence[bytes], *, num_callers: int, seconds: float) -> Calls:
    """Let so many callers send the bodies in turn, over and over, for a time."""
    return await _run(url, path, itertools.cycle(bodies), num_callers, time.perf_counter() + seconds)


async def one_by_one(url: str, path: str, bodies: Sequence[bytes]) -> Calls:
    """Let one caller send each of the bodies once."""
    return await _run(url, path, iter(bodies), 1, float("inf"))


async def _run(url: str, path: str, bodies: Iterator[bytes], num_callers: int, end_s: float) -> Calls:
    address = urlsplit(url)
    assert address.hostname is not None, url
    assert address.port is not None, url
    head = f"POST {path} HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n".encode()
    calls, loop, began_s = Calls(), asyncio.get_running_loop(), time.perf_counter()
    connections = []
    for _ in range(num_callers):
        _, connection = await loop.create_connection(
            lambda: _Connection(head, bodies, calls, end_s), address.hostname, address.port
        )
        connections.append(connection)
    await asyncio.gather(*(connection.done for connection in connections))
    calls.seconds = time.perf_counter() - began_s
    return calls
