"""The facts of one HTTP call, and the signs that its connection leaves for it; both travel in the ASGI scope."""

import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import Scope, Send

from textmill_router.http.api_keys import ANYBODY, Caller
from textmill_router.http.error_responses import TGI_ERRORS, ErrorStyle, Header
from textmill_router.tracing.call_trace import CallTrace

NO_ROUTE = "other"
_SCOPE_KEY = "textmill.call"
_WRITER_KEY = "textmill.writer"
_REFUSAL_KEY = "textmill.refusal"
_FILLER_KEY = "textmill.filler"
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class Call:
    """One HTTP call.

    Middlewares add `reply_headers` to the headers of the answer. `status` is 0 until the answer starts.
    """

    request_id: str
    arrival_s: float = field(default_factory=time.monotonic)
    reply_headers: list[Header] = field(default_factory=list)
    route: str = NO_ROUTE  # path of the route, for metrics; never text of a client
    trace_id: str | None = None  # of the caller's `traceparent`, else the id of the call's own trace, for the log
    status: int = 0
    error_style: ErrorStyle = TGI_ERRORS
    caller: Caller = ANYBODY  # the holder of the key that the call has shown
    error_type: str | None = None  # of the error that ended the call
    trace: CallTrace | None = None  # what the spans of the call will show; None where the call is not traced


def open_call(scope: Scope, request_id: str) -> Call:
    """Attach a new call to the scope."""
    call = Call(request_id)
    scope[_SCOPE_KEY] = call
    return call


def opened_call(scope: Scope) -> Call | None:
    """Return the call that this scope belongs to, or None where the application has not begun the call."""
    call: Call | None = scope.get(_SCOPE_KEY)
    return call


def request_id_in(headers: Iterable[Header]) -> str:
    """Return the id that the client gives in `x-request-id`, or a new id. The names of `headers` are in lower case."""
    given = next((value for name, value in headers if name == b"x-request-id"), None)
    is_usable = given is not None and _REQUEST_ID.fullmatch(given) is not None
    return given.decode() if given is not None and is_usable else uuid.uuid4().hex


def call_of(scope: Scope) -> Call:
    """Return the call that this scope belongs to."""
    call: Call = scope[_SCOPE_KEY]
    return call


class BodyWriter(Protocol):
    """Writes pieces of an answer that has begun straight to the connection, without a message of ASGI for each."""

    @property
    def is_open(self) -> bool:
        """Whether a piece can be written now, because the answer goes by chunks and the client is there and reads."""
        ...

    def write(self, data: bytes) -> None:
        """Write one piece, not empty; only while `is_open`."""
        ...


# Returns the writer that does what this `send` does, or None where the `send` is not that of the connection.
WriterFor = Callable[[Send], BodyWriter | None]


def offer_writer(scope: Scope, writer_for: WriterFor) -> None:
    """Let an event stream write without a task switch. The connection calls this for each call.

    The scope holds a function and no writer, because a writer would close a circle around each call, which only the
    garbage collector frees.
    """
    scope.setdefault("extensions", {})[_WRITER_KEY] = {"writer_for": writer_for}


def note_refusal(scope: Scope, status: int) -> None:
    """Note that the connection has answered this call itself, before the application did."""
    scope.setdefault("extensions", {})[_REFUSAL_KEY] = {"status": status}


def refusal_of(scope: Scope) -> int:
    """Return the status with which the connection refused this call, or 0 if the connection did not refuse the call."""
    status: int = scope.get("extensions", {}).get(_REFUSAL_KEY, {}).get("status", 0)
    return status


def note_filler(scope: Scope, filler: bytes) -> None:
    """Note the bytes that may stand between any two writes of this answer, which has begun, and change nothing."""
    scope.setdefault("extensions", {})[_FILLER_KEY] = {"filler": filler}


def filler_of(scope: Scope) -> bytes:
    """Return the filler of an answer that has begun, or no bytes where the answer has none."""
    filler: bytes = scope.get("extensions", {}).get(_FILLER_KEY, {}).get("filler", b"")
    return filler


def writer_of(scope: Scope, send: Send) -> BodyWriter | None:
    """Return the connection's writer, or None where a wrapper stands between `send` and the connection."""
    writer_for: WriterFor | None = scope.get("extensions", {}).get(_WRITER_KEY, {}).get("writer_for")
    return None if writer_for is None else writer_for(send)
