"""The facts of one HTTP call, and what its connection says and offers; all of it travels in the ASGI scope."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import Scope, Send

from textmill_router.http.error_responses import TGI_ERRORS, ErrorStyle, Header

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
    error_style: ErrorStyle = TGI_ERRORS


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
