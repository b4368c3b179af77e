"""Connections that cost too much are answered and closed, and the pinned uvicorn is as the guard expects."""

import asyncio
import gc
import re
import time
import weakref
from dataclasses import replace

import pytest
from starlette.types import Message, Receive, Scope, Send
from textmill_router.http.call import writer_of

from tests.fakes.guarded_server import LIMITS, echo_length, refusal, talk


async def write_for_ever(writer: asyncio.StreamWriter) -> None:
    """Write until the connection ends. A server that keeps all bytes that it reads fails here."""
    for _ in range(1000):
        writer.write(b"a" * 65536)
        await writer.drain()
        await asyncio.sleep(0)


def test_normal_requests_pass_on_one_connection() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for size in (0, 5, 100_000):
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size + b"b" * size)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            length = int(await reader.readline(), 16)
            assert await reader.readexactly(length) == b"%d" % size
            assert await reader.readexactly(7) == b"\r\n0\r\n\r\n"

    talk(exchange)


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\nx: " + b"a" * 5000 + b"\r\n\r\n",
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 21 + b"\r\n",
    ],
    ids=["bytes", "path", "fields"],
)
def test_large_header_is_431(header: bytes, is_split: bool) -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in (header[:100], header[100:]) if is_split else (header,):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        assert await refusal(reader) == (431, "header_too_large")

    talk(exchange)


def test_header_without_end_is_cut_off() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HTTP/1.1\r\nx: ")
        with pytest.raises(ConnectionError):
            await write_for_ever(writer)

    talk(exchange, replace(LIMITS, header_timeout_s=60.0))


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize(
    "offer",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",  # Java's HttpClient
        b"Connection: upgrade\r\nUPGRADE: websocket\r\n",
    ],
    ids=["h2c", "websocket"],
)
def test_offer_of_another_protocol_is_passed_over_and_the_body_read(offer: bytes, is_split: bool) -> None:
    body = b"0123456789\r\nupgrade: 3"
    header = b"POST / HTTP/1.1\r\nhost: x\r\n" + offer + b"content-length: %d\r\n\r\n" % len(body)

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):  # the connection serves a second call
            writer.write(header if is_split else header + body)
            if is_split:
                await writer.drain()
                await asyncio.sleep(0)
                writer.write(body)
            answer = await reader.readuntil(b"0\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"\r\n%d\r\n" % len(body) in answer

    talk(exchange)


def test_further_request_on_a_connection_has_its_own_count() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(5):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 2000 + b"\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.write(b"GET / HTTP/1.1\r\nx: " + b"a" * 5000 + b"\r\n\r\n")
        assert await refusal(reader) == (431, "header_too_large")

    talk(exchange)


def test_half_a_header_is_408_after_the_deadline() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started_s = time.monotonic()
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n")
        assert await refusal(reader) == (408, "request_timeout")
        assert time.monotonic() - started_s > 0.05

    talk(exchange, replace(LIMITS, header_timeout_s=0.1))


def test_half_a_header_of_a_further_request_is_408_too() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.write(b"GET / HT")
        assert await refusal(reader) == (408, "request_timeout")

    talk(exchange, replace(LIMITS, header_timeout_s=0.1))


def test_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""

    talk(exchange, replace(LIMITS, header_timeout_s=0.1))


def test_half_a_body_is_408_after_the_deadline() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        assert await refusal(reader) == (408, "request_timeout")

    server = talk(exchange, replace(LIMITS, body_timeout_s=0.1))
    assert not server.server_state.tasks


def test_body_that_trickles_is_408_and_one_that_flows_is_not() -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
        answer = asyncio.create_task(refusal(reader))
        while not answer.done():
            writer.write(b"a")
            await asyncio.wait({answer}, timeout=0.05)
        assert answer.result() == (408, "request_timeout")

    async def flow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Ten pieces of 8 KiB in half a second pass the deadline, but each piece extends it by half a second.
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 81920\r\n\r\n")
        for _ in range(10):
            writer.write(b"a" * 8192)
            await asyncio.sleep(0.05)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")

    limits = replace(LIMITS, body_timeout_s=0.2)
    talk(trickle, limits)
    talk(flow, limits)


def test_what_is_not_http_is_400_in_json() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        assert await refusal(reader) == (400, "invalid_http")

    talk(exchange)


def test_client_that_does_not_read_is_cut_off() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readexactly(1)
        await asyncio.sleep(0.5)  # longer than the stall limit, because the test is about time that passes
        num_bytes = 0
        try:
            while data := await reader.read(1 << 20):
                num_bytes += len(data)
        except ConnectionError:
            pass
        assert num_bytes < 20_000_000  # of 100 million

    talk(exchange, replace(LIMITS, stall_timeout_s=0.1))


class Pieces:
    """An app that answers with its path in pieces, with `is_short` by the connection's writer instead of `send`."""

    def __init__(self, *, is_short: bool) -> None:
        self.is_short = is_short
        self.open: list[bool] = []  # the writer before the answer, in it, after it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = writer_of(scope, send)
        assert writer is not None
        self.open.append(writer.is_open)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.open.append(writer.is_open)
        for piece in (scope["path"].encode(), b"x" * 1000, b"\r\n"):
            if self.is_short:
                writer.write(piece)
            else:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})
        self.open.append(writer.is_open)


def test_short_way_writes_what_send_writes_also_to_pipelined_requests() -> None:
    said: list[bytes] = []

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /one HTTP/1.1\r\nhost: x\r\n\r\nGET /two HTTP/1.1\r\nhost: x\r\n\r\n")
        said.append(await reader.readuntil(b"0\r\n\r\n") + await reader.readuntil(b"0\r\n\r\n"))

    for is_short in (False, True):
        app = Pieces(is_short=is_short)
        talk(exchange, app=app)
        assert app.open == [False, True, False] * 2
    plain, short = (re.sub(rb"date: [^\r]*\r\n", b"", data) for data in said)
    assert short == plain
    assert plain.index(b"/one") < plain.index(b"/two")


def test_calls_leave_nothing_to_the_garbage_collector() -> None:
    """A router that serves collects rarely, so no call may leave circles."""
    cycles: list[weakref.ref[object]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        writer = writer_of(scope, send)
        assert writer is not None
        cycles.append(weakref.ref(send.__self__))  # type: ignore[attr-defined]
        await echo_length(scope, receive, send)

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gc.disable()
        try:
            for _ in range(3):
                writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                await reader.readuntil(b"0\r\n\r\n")
            assert [cycle() is None for cycle in cycles] == [True, True, False]  # the connection holds the last one
        finally:
            gc.enable()

    talk(exchange, app=app)


def test_request_that_waits_behind_an_answer_has_its_deadline_afterwards() -> None:
    """The server does not read a waiting request, whose refusal would stand in the midst of the answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(0.5)  # more than two deadlines, because the test is about time that passes
            await send({"type": "http.response.body", "body": b"done"})
        else:
            await echo_length(scope, receive, send)

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\nPOST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab")
        answer = await reader.readuntil(b"0\r\n\r\n")
        assert b"408" not in answer
        assert answer.endswith(b"4\r\ndone\r\n0\r\n\r\n")
        writer.write(b"cde")
        assert b"\r\n5\r\n" in await reader.readuntil(b"0\r\n\r\n")
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        assert await refusal(reader) == (408, "request_timeout")

    talk(exchange, replace(LIMITS, body_timeout_s=0.2), app)


def test_refusal_is_not_written_into_an_answer() -> None:
    goes_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await goes_on.wait()

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /one HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"4\r\npart\r\n")
        writer.write(b"GET /two HTTP/1.1\r\nhost: x\r\n\r\nno HTTP\r\n\r\n")
        assert await reader.read() == b""
        goes_on.set()

    talk(exchange, app=app)


def test_no_short_way_where_something_stands_before_send_or_the_length_is_told() -> None:
    found: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def changed(message: Message) -> None:
            await send(message)

        writer = writer_of(scope, send)
        assert writer is not None
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        found.extend([writer_of(scope, changed) is None, writer.is_open])
        await send({"type": "http.response.body", "body": b"ok"})

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"ok")

    talk(exchange, app=app)
    assert found == [True, False]


def test_short_way_closes_while_the_client_does_not_read_and_when_it_leaves() -> None:
    seen: list[str] = []
    has_left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        writer = writer_of(scope, send)
        assert writer is not None
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):  # more than any buffer holds
            if not writer.is_open:
                seen.append("paused")
                break
            writer.write(b"x" * 100_000)
        has_left.set()
        await receive()
        seen.append("open" if writer.is_open else "closed")

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await has_left.wait()

    talk(exchange, app=app)
    assert seen == ["paused", "closed"]
