"""Answers to HTTP/1.0 have no chunks, and the connection ends unless the client asked to keep it open."""

import asyncio

import pytest
from starlette.types import Receive, Scope, Send
from textmill_router.http.call import writer_of

from tests.fakes.guarded_server import refusal, talk


async def pieces(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in two pieces, whose length only `/whole` declares."""
    writer = writer_of(scope, send)
    headers = [(b"content-length", b"8")] if scope["path"] == "/whole" else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    assert writer is None or not writer.is_open  # the short way writes chunks
    await send({"type": "http.response.body", "body": b"some", "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    await send({"type": "http.response.body", "body": b"text"})


async def answer_of(reader: asyncio.StreamReader) -> tuple[dict[bytes, bytes], bytes]:
    """Return the header fields, and the bytes that follow until the connection ends."""
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"  # RFC 9112, 2.3: the highest version of the server
    fields = [(name, value) for name, _, value in (line.partition(b": ") for line in lines[1:])]
    return dict(fields), body


@pytest.mark.parametrize("more", [b"", b"connection: keep-alive\r\n", b"host: x\r\nconnection: close\r\n"])
def test_answer_without_a_length_ends_with_the_connection(more: bytes) -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /stream HTTP/1.0\r\n" + more + b"\r\n")
        fields, body = await answer_of(reader)
        assert body == b"sometext"
        assert b"transfer-encoding" not in fields
        assert fields[b"connection"] == b"close"

    talk(exchange, app=pieces)


def test_answer_with_a_length_ends_the_connection_unless_it_was_asked_for() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(b"GET /whole HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"connection: keep-alive\r\n" in head
            assert await reader.readexactly(8) == b"sometext"
        writer.write(b"GET /whole HTTP/1.0\r\n\r\n")
        fields, body = await answer_of(reader)
        assert (fields[b"connection"], fields[b"content-length"], body) == (b"close", b"8", b"sometext")

    talk(exchange, app=pieces)


def test_pipelined_request_of_an_old_client_gets_no_chunks() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /whole HTTP/1.1\r\nhost: x\r\n\r\nGET /stream HTTP/1.0\r\n\r\n")
        await reader.readuntil(b"sometext")
        assert (await answer_of(reader))[1] == b"sometext"

    talk(exchange, app=pieces)


def test_old_client_is_not_told_to_continue() -> None:
    """The server ignores the expectation of an HTTP/1.0 request (RFC 9110, section 10.1.1)."""

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nab")
        assert (await answer_of(reader))[1] == b"2"

    talk(exchange)


@pytest.mark.parametrize(
    ("header", "status", "error_type"),
    [
        (b"GET / HTTP/1.1\r\n", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n", 400, "invalid_http"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n", 501, "unknown_transfer_coding"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n", 501, "unknown_transfer_coding"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n", 400, "invalid_http"),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", 400, "invalid_http"),
    ],
)
def test_faults_of_the_header_end_the_connection(header: bytes, status: int, error_type: str) -> None:
    """A header that breaks a rule of `framing.py` is refused, also after an answered request."""

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /whole HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"sometext")
        writer.write(header + b"\r\n")
        assert await refusal(reader) == (status, error_type)

    talk(exchange, app=pieces)
