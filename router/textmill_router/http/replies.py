"""How an answer leaves: the one place that starts HTTP responses, and the facts of a call that go with it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import Scope, Send

from textmill_router.errors import RequestError
from textmill_router.http.error_responses import ErrorStyle, Header, error_body, error_headers, error_status

_SCOPE_KEY = "textmill.call"
_WRITER_KEY = "textmill.writer"
_REFUSAL_KEY = "textmill.refusal"


@dataclass(slots=True)
class Call:
    """One HTTP call. Middlewares add `reply_headers`; `status` is set when the answer starts, 0 until then."""

    request_id: str
    arrival_s: float = field(default_factory=time.monotonic)
    reply_headers: list[Header] = field(default_factory=list)
    route: str = "other"  # path of the route, for metrics; never a client's text
    trace_id: str | None = None  # of the caller's `traceparent`, for the log
    status: int = 0
    error_style: ErrorStyle = ErrorStyle.NATIVE


def open_call(scope: Scope, request_id: str) -> Call:
    """Attach a new call to the scope."""
    call = Call(request_id)
    scope[_SCOPE_KEY] = call
    return call


def call_of(scope: Scope) -> Call:
    """The call that this scope belongs to."""
    call: Call = scope[_SCOPE_KEY]
    return call


class BodyWriter(Protocol):
    """A connection's short way for pieces of an answer that has begun."""

    @property
    def is_open(self) -> bool:
        """Whether a piece can be written now: the answer goes by chunks, the client is there and reads."""
        ...

    def write(self, data: bytes) -> None:
        """Write one piece, not empty; only while `is_open`."""
        ...


# The writer that stands for a `send`, None where that is not the connection's own.
WriterFor = Callable[[Send], BodyWriter | None]


def offer_writer(scope: Scope, writer_for: WriterFor) -> None:
    """Called by the connection: lets an event stream write without a task switch.

    The scope holds no writer: with one each call would be a circle, which only the garbage collector frees.
    """
    scope.setdefault("extensions", {})[_WRITER_KEY] = {"writer_for": writer_for}


def note_refusal(scope: Scope, status: int) -> None:
    """Called by the connection: it has answered this call itself, before the application did."""
    scope.setdefault("extensions", {})[_REFUSAL_KEY] = {"status": status}


def refusal_of(scope: Scope) -> int:
    """The status with which the connection refused this call, 0 if it did not."""
    status: int = scope.get("extensions", {}).get(_REFUSAL_KEY, {}).get("status", 0)
    return status


def writer_of(scope: Scope, send: Send) -> BodyWriter | None:
    """The connection's writer; None where something stands between `send` and the connection."""
    writer_for: WriterFor | None = scope.get("extensions", {}).get(_WRITER_KEY, {}).get("writer_for")
    return None if writer_for is None else writer_for(send)


async def start_reply(scope: Scope, send: Send, status: int, headers: Sequence[Header]) -> None:
    """Send status line and header, with what the middlewares add."""
    call = call_of(scope)
    call.status = status
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *call.reply_headers]})


async def send_reply(
    scope: Scope,
    send: Send,
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
    headers: Sequence[Header] = (),
) -> None:
    """Send a whole answer. An empty body has no content type."""
    described: list[Header] = [(b"content-length", b"%d" % len(body))]
    if body:
        described.append((b"content-type", content_type))
    await start_reply(scope, send, status, [*described, *headers])
    await send({"type": "http.response.body", "body": body})


async def send_error(scope: Scope, send: Send, error: RequestError) -> None:
    """Send an error as a whole answer, in the form that the call's dialect has."""
    style = call_of(scope).error_style
    await send_reply(scope, send, error_status(error, style), error_body(error, style), headers=error_headers(error))
