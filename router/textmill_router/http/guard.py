"""Limits that uvicorn lacks: on the size and the fields of a header, on the time of header and body, on slow readers.

The classes build on the protocol class of the pinned uvicorn; `tests/unit/router/http/test_guard.py` tests each
behaviour of that class on which they rely.
"""

import asyncio
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote, urlsplit

from starlette.types import ASGIApp, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from textmill_router.errors import BadHttp, HeaderTooLarge, RequestError, RequestTimedOut
from textmill_router.http.call import filler_of, note_refusal, offer_writer, opened_call, request_id_in
from textmill_router.http.error_responses import ErrorStyle, error_headers
from textmill_router.http.framing import HTTP_1_1, framing_fault
from textmill_router.http.half_closed import HalfClosedWatch
from textmill_router.http.keepalive import notice_silence
from textmill_router.http.lingering import MAX_DISCARDED_BYTES, LingeringTransport
from textmill_router.http.path_style import PathStyles
from textmill_router.http.unchunked import without_chunks

# The least speed of a body whose first deadline has passed.
LEAST_BODY_BYTES_PER_S = 16_384
# The most bytes that wait for a client that stops reading, in the buffer of the kernel and in that of the transport.
SEND_BUFFER_BYTES = 65_536
WRITE_HIGH_WATER_BYTES = 32_768

# Bytes of chunk lines that each byte of a body may bring along. A chunk of one byte has five.
CHUNK_LINE_BYTES_PER_BODY_BYTE = 16
# An interim answer, which a client that waits must pass over (RFC 9110, 15.2).
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"

_HEADER_END = b"\r\n\r\n"
_UPGRADE = re.compile(rb"(?<=\n)upgrade(?=:)", re.IGNORECASE)
_NO_UPGRADE = b"x-offer"  # as long as the name that it replaces


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """The most that one connection may send in a header, and the longest that it may take."""

    max_header_bytes: int
    max_header_fields: int
    header_timeout_s: float
    body_timeout_s: float
    stall_timeout_s: float


def guarded_protocol(
    limits: GuardLimits, on_refused: Callable[[int], None], styles: PathStyles
) -> type[HttpToolsProtocol]:
    """Return the protocol class with these limits, because uvicorn takes a class and gives it no further arguments.

    `on_refused` is called with the status of each refusal that no call of the application stands for. `styles` say how
    errors look on a path.
    """
    attributes = {"limits": limits, "on_refused": staticmethod(on_refused), "styles": styles}
    return type("GuardedHttpProtocol", (_GuardedProtocol,), attributes)


class _ChunkWriter:
    """Writes pieces of a chunked body as uvicorn's `send` does, without a message and a coroutine for each."""

    __slots__ = ("_cycle", "_flow", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._transport = cycle.transport

    @property
    def is_open(self) -> bool:
        cycle = self._cycle  # `chunked_encoding` is None until the answer has begun
        return bool(cycle.chunked_encoding) and not (
            self._flow.write_paused or cycle.response_complete or cycle.disconnected
        )

    def write(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


def _writer_for(send: Send) -> _ChunkWriter | None:
    cycle = getattr(send, "__self__", None)
    return _ChunkWriter(cycle) if isinstance(cycle, RequestResponseCycle) else None


class _GuardedProtocol(HttpToolsProtocol):
    """One connection, which is idle, in a header, in a body, or waits for an answer.

    One deadline runs in a header, and another one in a body.
    """

    limits: GuardLimits
    on_refused: Callable[[int], None]
    styles: PathStyles
    _deadline: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _is_in_header = True
    _header_bytes = 0
    _header_fields = 0
    _field_bytes = 0
    _body_bytes = 0
    _body_started_s = 0.0
    _frame_bytes = 0  # that came during a body, with the body
    _half_closed: HalfClosedWatch | None = None
    _refusal: RequestError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, LingeringTransport(transport, self._is_client_sending)))
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            notice_silence(connection, self.limits.stall_timeout_s)
        self._start_deadline(self.limits.header_timeout_s, self._on_header_deadline)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        self._stop_stall()
        if self._half_closed is not None:
            self._half_closed.stop()
            self._half_closed = None
        self._lingering.stop()
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection where a whole request waits for its answer, and close every other one."""
        cycle = self.cycle
        if self._half_closed is not None:
            return True
        connection: socket.socket | None = self.transport.get_extra_info("socket")
        is_waiting = cycle is not None and not cycle.more_body and not cycle.response_complete
        if not is_waiting or self.scheme == "https" or connection is None:
            return None
        cycle.keep_alive = False
        self._half_closed = HalfClosedWatch(connection, self._write_filler, self.transport.abort)
        return True

    def data_received(self, data: bytes) -> None:
        if self._lingering.is_lingering:
            self._lingering.discard(len(data))
            return
        if self._refusal is not None:
            return
        if self._is_in_header:
            self._header_bytes += len(data)
            if self._deadline is None:  # the first bytes of a further request on this connection
                self._start_deadline(self.limits.header_timeout_s, self._on_header_deadline)
            data = _without_upgrade(data)
        was_in_body = not self._is_in_header
        super().data_received(data)
        if was_in_body and not self._is_in_header:
            self._frame_bytes += len(data)
            self._check_frame()
        # A header that ended inside `data` was counted by its fields.
        if self._is_in_header and self._header_bytes > self.limits.max_header_bytes and self._refusal is None:
            self._refuse(self._header_too_large())

    def on_message_begin(self) -> None:
        self._is_in_header = True
        self._header_fields = 0
        super().on_message_begin()
        offer_writer(cast(Scope, self.scope), _writer_for)
        self._field_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count_header(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_fields += 1
        self._count_header(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        http_version = self.parser.get_http_version()
        fault = framing_fault(http_version, self.headers)
        if fault is not None:
            self._refuse(fault)
            raise ValueError(str(fault))  # stops the parser
        self._is_in_header = False
        self._header_bytes = 0
        self._stop_deadline()
        self._body_bytes = self._frame_bytes = 0
        self._body_started_s = self.loop.time()
        self._start_deadline(self.limits.body_timeout_s, self._on_body_deadline)
        super().on_headers_complete()
        if http_version != HTTP_1_1:
            self.cycle.keep_alive = self.parser.should_keep_alive()
            self.cycle.waiting_for_100_continue = False  # RFC 9110, 10.1.1: an old client expects no such answer

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        is_old = cycle.scope["http_version"] != HTTP_1_1
        super()._start_asgi_task(cycle, without_chunks(app, cycle) if is_old else app)  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > MAX_DISCARDED_BYTES and self.cycle.response_complete:
            self.transport.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_header = True
        self._stop_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._body_started_s = self.loop.time()  # a request that waited behind this answer is read from here on
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer 400. Uvicorn calls this when parsing failed, also where a callback above has raised."""
        if self._refusal is None:
            self._refuse(BadHttp(f"the bytes sent are not an HTTP request: {msg}"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self.limits.stall_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stall()

    def _check_frame(self) -> None:
        """Refuse a chunked body whose chunk lines or trailers are longer than a header may be."""
        num_line_bytes = self._frame_bytes - self._body_bytes
        allowed = self.limits.max_header_bytes + CHUNK_LINE_BYTES_PER_BODY_BYTE * self._body_bytes
        if num_line_bytes > allowed and self._refusal is None:
            self._refuse(
                HeaderTooLarge(
                    f"the lines around the chunks of a body must have at most {self.limits.max_header_bytes} bytes "
                    f"(--max-header-bytes) and {CHUNK_LINE_BYTES_PER_BODY_BYTE} more for each byte of the body"
                )
            )

    def _is_client_sending(self) -> bool:
        """Whether the client still sends a request that has been answered."""
        if self._refusal is not None:
            return self._header_bytes > 0 or not self._is_in_header
        return self.cycle is not None and self.cycle.response_started and not self._is_in_header

    @property
    def _lingering(self) -> LingeringTransport:
        return cast(LingeringTransport, self.transport)

    def _write_filler(self) -> None:
        """Send bytes that a client that waits passes over."""
        cycle = self.cycle
        if self.pipeline or self.transport.is_closing():
            return
        if cycle.response_started:
            filler = filler_of(cast(Scope, cycle.scope))
            writer = _ChunkWriter(cycle)
            if filler and writer.is_open:
                writer.write(filler)
        elif cycle.scope["http_version"] == HTTP_1_1:
            self.transport.write(_INTERIM)

    def _count_header(self, num_bytes: int) -> None:
        self._field_bytes += num_bytes
        is_over = self._field_bytes > self.limits.max_header_bytes
        if is_over or self._header_fields > self.limits.max_header_fields:
            self._refuse(self._header_too_large())
            raise ValueError("header too large")  # stops the parser

    def _header_too_large(self) -> HeaderTooLarge:
        return HeaderTooLarge(
            f"the request header must have at most {self.limits.max_header_bytes} bytes in "
            f"{self.limits.max_header_fields} fields (--max-header-bytes, --max-header-fields)"
        )

    def _on_header_deadline(self) -> None:
        self._deadline = None
        if self._header_bytes == 0:
            self._refusal = RequestTimedOut("")
            self.transport.close()  # nothing was asked, so nothing is answered
            return
        self._refuse(RequestTimedOut(f"the header did not end within {self.limits.header_timeout_s:g} s"))

    def _on_body_deadline(self) -> None:
        self._deadline = None
        if self.pipeline:  # the request waits behind an answer, and is not read until then
            self._start_deadline(self.limits.body_timeout_s, self._on_body_deadline)
            return
        allowed_s = self.limits.body_timeout_s + self._body_bytes / LEAST_BODY_BYTES_PER_S
        left_s = self._body_started_s + allowed_s - self.loop.time()
        if left_s > 0:
            self._start_deadline(left_s, self._on_body_deadline)
            return
        self._refuse(RequestTimedOut(f"the body did not end within {allowed_s:.0f} s: {self._body_bytes} bytes came"))

    def _refuse(self, error: RequestError) -> None:
        """Answer with the error, unless an answer has begun, and close the connection."""
        self._refusal = error
        self._stop_deadline()
        if self.transport.is_closing():
            return
        is_open = self.cycle is not None and not self.cycle.response_complete
        has_open_answer = bool(self.pipeline) or (is_open and self.cycle.response_started)
        if not has_open_answer:
            style = self._error_style()
            body, status = style.body_of(error), style.status_of(error)
            headers = [
                *error_headers(error),
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
                (b"x-request-id", self._request_id().encode()),
            ]
            lines = [b"%b: %b\r\n" % header for header in headers]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
            if self.cycle is not None and not self.cycle.response_complete:
                note_refusal(cast(Scope, self.scope), status)  # the application counts its call with this status
            else:
                self.on_refused(status)
        self.transport.close()

    def _error_style(self) -> ErrorStyle:
        """Return the style of the path, as far as the path has come."""
        target: bytes = getattr(self, "url", b"")  # uvicorn sets the attribute where a request begins
        try:
            path = unquote(urlsplit(target.decode("latin-1")).path)
        except ValueError:  # no URL
            path = ""
        return self.styles.of(path).errors

    def _request_id(self) -> str:
        """Return the id of the call that the application has begun, or else the id that the client or we give."""
        is_begun = self.cycle is not None and not self.cycle.response_complete
        call = opened_call(cast(Scope, self.scope)) if is_begun else None
        return request_id_in(self.headers or ()) if call is None else call.request_id

    def _start_deadline(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._deadline = self.loop.call_later(delay_s, callback)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


def _without_upgrade(data: bytes) -> bytes:
    """Return the bytes with the name of the header `upgrade` changed, so that the parser passes over the offer.

    A server may ignore the offer of another protocol (RFC 9110, 7.8), and the parser would drop the body behind the
    header. Java's own client offers h2c with each first request.
    """
    header_end = data.find(_HEADER_END)
    found = _UPGRADE.search(data, 0, len(data) if header_end < 0 else header_end)
    return data if found is None else data[: found.start()] + _NO_UPGRADE + data[found.end() :]
