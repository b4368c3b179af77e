"""Server-sent events of one answer, which begins with its first event and is kept alive by comments."""

import asyncio
from collections.abc import Sequence

from starlette.types import Scope, Send

from textmill_router.http.call import note_filler, writer_of
from textmill_router.http.error_responses import Header
from textmill_router.http.line_ends import escape_line_ends
from textmill_router.http.replies import EVENTS, start_reply

KEEP_ALIVE_S = 15.0
_COMMENT = b":\n\n"
STREAM_HEADERS: tuple[Header, ...] = (
    (b"content-type", EVENTS),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class OpenStreams:
    """The streams that are open now, so that all of them can get a comment at once."""

    def __init__(self) -> None:
        self._streams: set[EventStream] = set()

    def add(self, stream: "EventStream") -> None:
        self._streams.add(stream)

    def remove(self, stream: "EventStream") -> None:
        self._streams.discard(stream)

    def comment_all(self) -> None:
        """Send a comment to each stream, because nothing else will come for a while."""
        for stream in self._streams:
            stream.comment()


class EventStream:
    """One answer in events. Nothing is sent before the first write, so that an error until then has its own status.

    Events hold JSON, and no character of theirs ends a line but the line ends of the events.
    """

    def __init__(
        self,
        scope: Scope,
        send: Send,
        headers: Sequence[Header],
        streams: "OpenStreams",
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self._scope = scope
        self._send = send
        self._headers = [*STREAM_HEADERS, *headers]
        self._keep_alive_s = keep_alive_s
        self._writer = writer_of(scope, send)
        self._loop = asyncio.get_running_loop()
        self._last_write_s = self._loop.time()
        self._timer = self._loop.call_later(keep_alive_s, self._on_timer)
        self._comment: asyncio.Task[None] | None = None
        self.is_started = False
        self._streams = streams
        streams.add(self)

    @property
    def can_write_now(self) -> bool:
        """Whether the answer has begun, the client reads, and no comment is being sent."""
        return self.is_started and self._comment is None and self._writer is not None and self._writer.is_open

    def write_now(self, data: bytes) -> None:
        """Send events without a task switch; only while `can_write_now`."""
        assert self._writer is not None
        self._last_write_s = self._loop.time()
        self._writer.write(escape_line_ends(data))

    async def write(self, data: bytes) -> None:
        """Send events, and wait while the client does not read."""
        if self._comment is not None:
            await self._finish_comment()
        if not self.is_started:
            await self._start()
        self._last_write_s = self._loop.time()
        await self._send({"type": "http.response.body", "body": escape_line_ends(data), "more_body": True})

    async def end(self, data: bytes) -> None:
        """Send the last events and end the answer in the same write."""
        self.close()
        if self._comment is not None:
            await self._finish_comment()
        if not self.is_started:
            await self._start()
        await self._send({"type": "http.response.body", "body": escape_line_ends(data), "more_body": False})

    def close(self) -> None:
        """Send no more comments, so that a stream that has not begun does not begin by itself. May be called twice."""
        self._timer.cancel()
        self._streams.remove(self)
        if self._comment is not None and not self.is_started:
            self._comment.cancel()
            self._comment = None

    async def _start(self) -> None:
        self.is_started = True
        await start_reply(self._scope, self._send, 200, self._headers)
        note_filler(self._scope, _COMMENT)

    async def _finish_comment(self) -> None:
        comment, self._comment = self._comment, None
        assert comment is not None
        await comment

    def _on_timer(self) -> None:
        idle_s = self._loop.time() - self._last_write_s
        wait_s = self._keep_alive_s - idle_s
        if wait_s <= 0:
            wait_s = self._keep_alive_s
            self.comment()
        self._timer = self._loop.call_later(wait_s, self._on_timer)

    def comment(self) -> None:
        """Send a comment soon, which begins the answer if nothing has begun it."""
        self._last_write_s = self._loop.time()
        # A comment that still waits for the client to read needs no second one.
        if self._comment is None or self._comment.done():
            self._comment = self._loop.create_task(self._write_comment())

    async def _write_comment(self) -> None:
        if not self.is_started:
            await self._start()
        await self._send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
