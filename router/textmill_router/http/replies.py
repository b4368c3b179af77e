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
    if content_type in (JSON, EVENTS):
        body = escape_line_ends(body)
    described: list[Header] = [(b"content-length", b"%d" % len(body))]
    if body:
        described.append((b"content-type", content_type))
    await start_reply(scope, send, status, [*described, *headers])
    await send({"type": "http.response.body", "body": body})


async def send_error(scope: Scope, send: Send, error: RequestError) -> None:
    """Send an error as a whole answer, in the style of the call's dialect."""
    call = call_of(scope)
    call.error_type = error_kind(error).error_type
    style = call.error_style
    await send_reply(scope, send, style.status_of(error), style.body_of(error), headers=error_headers(error))
