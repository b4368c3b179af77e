"""One streamed POST on a connection of its own, with the arrival time of each event.

The client uses asyncio's protocol interface, because it must be light: it shares two cores with the server.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from bench.dialects import Dialect, GenerationWish, StreamState


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """The outcome of one request. Times are seconds on the clock of `time.perf_counter`."""

    due_s: float  # the time at which the request was to be sent
    sent_s: float  # later than `due_s` only where the client is overloaded
    token_times_s: tuple[float, ...]  # of each event with output tokens
    done_s: float
    status: int  # 0 = no answer
    num_prompt_tokens: int | None
    num_output_tokens: int
    text: str
    error: str | None


class _EventStream(asyncio.Protocol):
    """The connection, which feeds the answer to the HTTP parser and the events to the dialect."""

    def __init__(self, dialect: Dialect, request: bytes) -> None:
        self.state = StreamState()
        self.status = 0
        self.token_times_s: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._dialect = dialect
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._buffer = b""
        self._now_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's transports do not inherit from asyncio's

    def data_received(self, data: bytes) -> None:
        self._now_s = time.perf_counter()
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._buffer += body.replace(b"\r", b"") if b"\r" in body else body
        if self.status != 200:
            return
        *events, self._buffer = self._buffer.split(b"\n\n")
        for event in events:
            payload = event.removeprefix(b"data:").strip()
            if event.startswith(b"data:") and self._dialect.read(payload, self.state):
                self.token_times_s.append(self._now_s)

    def on_message_complete(self) -> None:
        if self.status != 200:
            self.state.error = self._buffer[:500].decode(errors="replace") or f"status {self.status}"
        self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish()

    def _finish(self) -> None:
        if self.state.error is None and not self.state.is_finished:
            self.state.error = "the stream ended early"
        if not self.done.done():
            self.done.set_result(None)


async def stream_once(
    url: str, dialect: Dialect, wish: GenerationWish, *, due_s: float | None = None, timeout_s: float = 600.0
) -> StreamRecord:
    """Send one request and read its stream to the end. Failures of the server end up in the record."""
    address = urlsplit(url)
    assert address.hostname is not None, url
    body = dialect.body(wish)
    request = (
        f"POST {dialect.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    sent_s = time.perf_counter()
    stream = _EventStream(dialect, request)
    error: str | None = None
    try:
        async with asyncio.timeout(timeout_s):
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: stream, address.hostname, address.port or 80
            )
            try:
                await stream.done
            finally:
                transport.close()
    except (OSError, TimeoutError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    state = stream.state
    return StreamRecord(
        due_s=sent_s if due_s is None else due_s,
        sent_s=sent_s,
        token_times_s=tuple(stream.token_times_s),
        done_s=time.perf_counter(),
        status=stream.status,
        num_prompt_tokens=state.num_prompt_tokens,
        num_output_tokens=state.num_events_with_text if state.num_output_tokens is None else state.num_output_tokens,
        text="".join(state.text),
        error=error or state.error,
    )
