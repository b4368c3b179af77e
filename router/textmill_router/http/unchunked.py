"""Answers to clients that do not know chunks, because their request is not HTTP/1.1 (RFC 9112, 6.1 and 9.3)."""

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def without_chunks(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """Return an application that answers the call of `cycle` without chunks."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, _UnchunkedSend(cycle))

    return run


class _UnchunkedSend:
    """The `send` of one call. An answer without a length ends with the connection.

    An answer with a length keeps the connection if the client asked for that, and says so, because the connection of
    HTTP/1.0 ends otherwise.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._has_length = True

    async def __call__(self, message: Message) -> None:
        cycle = self._cycle
        if message["type"] == "http.response.start":
            message = self._start(message)
        elif not self._has_length:
            cycle.expected_content_length = len(message.get("body", b""))  # uvicorn counts each piece against it
        await cycle.send(message)  # type: ignore[arg-type]

    def _start(self, message: Message) -> Message:
        cycle = self._cycle
        headers: list[Any] = list(message["headers"])
        names = {name.lower() for name, _ in headers}
        self._has_length = b"content-length" in names
        if not self._has_length:
            cycle.chunked_encoding = False
            cycle.keep_alive = False
        elif cycle.keep_alive and b"connection" not in names:
            headers.append((b"connection", b"keep-alive"))
        return {**message, "headers": headers}
