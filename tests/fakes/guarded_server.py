"""A guarded server with one connection, on which a test speaks HTTP byte by byte."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from textmill_router.http.guard import GuardLimits, guarded_protocol
from textmill_router.http.path_style import PathStyles

LIMITS = GuardLimits(
    max_header_bytes=4096, max_header_fields=20, header_timeout_s=5.0, body_timeout_s=5.0, stall_timeout_s=5.0
)
LIMIT_S = 10.0
Exchange = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo_length(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the number of bytes of the body, and on `/flood` with more bytes than any buffer holds."""
    num_bytes, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        num_bytes += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/flood":
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
    await send({"type": "http.response.body", "body": b"%d" % num_bytes})


def talk(exchange: Exchange, limits: GuardLimits = LIMITS, app: ASGIApp = echo_length) -> uvicorn.Server:
    """Run the exchange on a connection to a guarded server, and return the server after its end."""

    async def scenario() -> uvicorn.Server:
        config = uvicorn.Config(
            app,
            port=0,
            http=guarded_protocol(limits, lambda status: None, PathStyles()),
            lifespan="off",
            log_config=None,
            access_log=False,
            ws="none",
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server._serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn sets no event
            await asyncio.sleep(0.001)
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
        try:
            async with asyncio.timeout(LIMIT_S):
                await exchange(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            server.should_exit = True
            await serving
        return server

    return asyncio.run(scenario())


async def refusal(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Return status and `error_type` of an answer after which the connection ends."""
    data = await reader.read()
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"content-type: application/json" in head
    error = json.loads(body)
    assert set(error) == {"error", "error_type"}
    return int(head.split()[1]), error["error_type"]
