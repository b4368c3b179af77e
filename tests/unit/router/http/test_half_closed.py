"""A client that closes its side gets its answer, and a client that is gone is noticed although its sign is the same."""

import asyncio
import socket
import struct
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from textmill_router.http.call import note_filler
from textmill_router.http.half_closed import HalfClosedWatch

from tests.fakes.guarded_server import LIMIT_S, talk

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class SlowApp:
    """Answers when the test says so, and notes the client's leave. With `has_begun` the answer begins at once."""

    def __init__(self, *, has_begun: bool) -> None:
        self._has_begun = has_begun
        self.may_answer = asyncio.Event()
        self.has_left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        start = {"type": "http.response.start", "status": 200, "headers": []}
        if self._has_begun:
            await send(start)
            await send({"type": "http.response.body", "body": b"first ", "more_body": True})
            note_filler(scope, b":\n\n")
        leave: asyncio.Future[Message] = asyncio.ensure_future(receive())
        answer: asyncio.Future[bool] = asyncio.ensure_future(self.may_answer.wait())
        waits: set[asyncio.Future[Any]] = {leave, answer}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        answer.cancel()
        if leave.done():
            assert leave.result()["type"] == "http.disconnect"
            self.has_left.set()
            return
        leave.cancel()
        if not self._has_begun:
            await send(start)
        await send({"type": "http.response.body", "body": b"last"})


@pytest.mark.parametrize("has_begun", [False, True], ids=["before the answer", "in the answer"])
def test_client_that_closes_its_side_gets_the_whole_answer(has_begun: bool) -> None:
    app = SlowApp(has_begun=has_begun)

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GET)
        if has_begun:
            await reader.readuntil(b"first ")
        writer.write_eof()
        # The filler shows that the server has seen the end and goes on.
        await reader.readuntil(b":\n\n" if has_begun else b"HTTP/1.1 100 Continue\r\n\r\n")
        app.may_answer.set()
        rest = await reader.read()
        assert rest.endswith(b"4\r\nlast\r\n0\r\n\r\n")
        assert has_begun or b"connection: close" in rest
        assert not app.has_left.is_set()

    talk(exchange, app=app)


@pytest.mark.parametrize("has_begun", [False, True], ids=["before the answer", "in the answer"])
def test_client_that_is_gone_is_noticed(has_begun: bool) -> None:
    app = SlowApp(has_begun=has_begun)

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GET)
        if has_begun:
            await reader.readuntil(b"first ")
        writer.close()
        async with asyncio.timeout(LIMIT_S):
            await app.has_left.wait()

    talk(exchange, app=app)


def test_half_a_request_ends_with_the_clients_side() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")
        writer.write_eof()
        assert await reader.read() == b""

    talk(exchange)


def test_pipelined_requests_of_a_closed_side_are_all_answered() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GET * 3)
        writer.write_eof()
        assert (await reader.read()).count(b"HTTP/1.1 200 OK") == 3

    talk(exchange)


def test_old_clients_get_no_interim_answer() -> None:
    app = SlowApp(has_begun=False)

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        writer.write_eof()
        asyncio.get_running_loop().call_later(0.1, app.may_answer.set)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")

    talk(exchange, app=app)


def test_reset_is_noticed_and_the_watch_then_rests() -> None:
    async def watch() -> None:
        gone = asyncio.Event()
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with listener, accepted:
            watching = HalfClosedWatch(accepted, lambda: None, gone.set)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()  # with a reset
            async with asyncio.timeout(LIMIT_S):
                await gone.wait()
            watching.stop()

    asyncio.run(watch())
