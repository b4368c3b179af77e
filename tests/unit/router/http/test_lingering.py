"""An answer before the end of its request reaches the client, and costs the server a bounded number of bytes."""

import asyncio
import time
from dataclasses import replace

import pytest
from starlette.types import Receive, Scope, Send
from textmill_router.http import lingering

from tests.fakes.guarded_server import LIMITS, refusal, talk

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"


async def refuse_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without a look at the body, and close, as routes answer a body that is too long."""
    headers = [(b"content-length", b"2"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": b"no"})


async def write_on(writer: asyncio.StreamWriter, data: bytes, pause_s: float = 0.0) -> None:
    """Write the data again and again, until the connection ends."""
    for _ in range(1000):
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(pause_s)


@pytest.mark.parametrize(
    "framing", [b"content-length: 8000000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n7a1200\r\n"]
)
def test_client_that_writes_all_before_it_reads_sees_the_answer(framing: bytes) -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + framing + b"b" * 8_000_000)
        await writer.drain()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.endswith(b"no")

    talk(exchange, app=refuse_at_once)


def test_answer_comes_before_the_rest_of_the_body() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"content-length: 8000000\r\n\r\nbbb")
        assert (await reader.read()).startswith(b"HTTP/1.1 413 ")  # to the end of the server's side

    talk(exchange, app=refuse_at_once)


def test_application_that_answers_after_a_refusal_fails_no_write(caplog: pytest.LogCaptureFixture) -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The header starts the application, and the chunk size that is no number ends the call before its first line.
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nhi\r\n")
        assert await refusal(reader) == (400, "invalid_http")
        writer.write(b"more")
        writer.close()

    talk(exchange, app=refuse_at_once)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_connection_of_a_client_that_neither_sends_nor_leaves_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "LINGER_S", 0.2)

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"content-length: 8000000\r\n\r\nbbb")
        await reader.read()
        began_s = time.monotonic()
        with pytest.raises(ConnectionError):
            await write_on(writer, b"b", pause_s=0.01)
        assert time.monotonic() - began_s < LIMITS.body_timeout_s

    talk(exchange, app=refuse_at_once)


@pytest.mark.parametrize("is_kept", [False, True], ids=["closing", "kept"])
def test_endless_body_behind_an_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch, is_kept: bool) -> None:
    monkeypatch.setattr(lingering, "MAX_DISCARDED_BYTES", 1_000_000)
    monkeypatch.setattr("textmill_router.http.guard.MAX_DISCARDED_BYTES", 1_000_000)

    async def answer_and_keep(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"content-length: 900000000\r\n\r\n")
        with pytest.raises(ConnectionError):
            await write_on(writer, b"b" * 65_536)

    talk(exchange, app=answer_and_keep if is_kept else refuse_at_once)


@pytest.mark.parametrize(
    "after_head",
    [
        b"2;" + b"e" * 6000 + b"\r\nhi\r\n0\r\n\r\n",
        b"2\r\nhi\r\n0\r\n" + b"trailer: " + b"t" * 6000 + b"\r\n\r\n",
        b"2\r\nhi\r\n0\r\n" + b"t: t\r\n" * 2000 + b"\r\n",
        b"2;" + b"e" * 6000,
        b"2\r\nhi\r\n0\r\n" + b"trailer: " + b"t" * 6000,
    ],
    ids=["chunk line", "trailer", "trailers", "chunk line without end", "trailer without end"],
)
def test_chunk_lines_and_trailers_have_the_limits_of_a_header(after_head: bytes) -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        await writer.drain()
        for start in range(0, len(after_head), 1000):  # so that a line comes in pieces
            writer.write(after_head[start : start + 1000])
            await writer.drain()
            await asyncio.sleep(0.001)
        assert await refusal(reader) == (431, "header_too_large")

    talk(exchange, replace(LIMITS, body_timeout_s=60.0))


def test_body_of_tiny_chunks_and_a_small_trailer_is_taken() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(20):
            writer.write(b"1\r\nx\r\n" * 500)
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\nchecksum: 1\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await reader.readline() == b"5\r\n"
        assert await reader.readline() == b"10000\r\n"

    talk(exchange)
