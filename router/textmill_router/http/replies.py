"""Sends answers; this file is the only one that starts HTTP responses."""

from collections.abc import Sequence

from starlette.types import Scope, Send

from textmill_router.errors import RequestError
from textmill_router.http.call import call_of
from textmill_router.http.error_responses import CLOSE, Header, error_headers, error_kind
from textmill_router.http.line_ends import escape_line_ends

JSON = b"application/json"
EVENTS = b"text/event-stream"


async def start_reply(scope: Scope, send: Send, status: int, headers: Sequence[Header]) -> None:
    """Send status and headers, with the headers that the middlewares add."""
    call = call_of(scope)
    call.status = status
    added = call.reply_headers
    if CLOSE in headers:
        added = [header for header in added if header != CLOSE]  # a header that stands twice is a list of two options
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *added]})


async def send_reply(
    scope: Scope,
    send: Send,
    status: int,
    body: bytes,
    *,
    content_type: bytes = JSON,
    headers: Sequence[Header] = (),
) -> None:
    """Send a whole answer. An empty body has no content type."""
    await send_pieces(scope, send, status, [body], content_type=content_type, headers=headers)


async def send_pieces(
    scope: Scope,
    send: Send,
    status: int,
    pieces: Sequence[bytes],
    *,
    content_type: bytes = JSON,
    headers: Sequence[Header] = (),
) -> None:
    """Send a whole answer whose body is there in pieces, at least one, between which other calls have turns."""
    if content_type in (JSON, EVENTS):
        pieces = [escape_line_ends(piece) for piece in pieces]
    num_bytes = sum(map(len, pieces))
    described: list[Header] = [(b"content-length", b"%d" % num_bytes)]
    if num_bytes:
        described.append((b"content-type", content_type))
    await start_reply(scope, send, status, [*described, *headers])
    for piece in pieces[:-1]:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": pieces[-1]})


async def send_error(scope: Scope, send: Send, error: RequestError) -> None:
    """Send an error as a whole answer, in the style of the call's dialect."""
    call = call_of(scope)
    call.error_type = error_kind(error).error_type
    style = call.error_style
    await send_reply(scope, send, style.status_of(error), style.body_of(error), headers=error_headers(error))
