"""GET /docs and the OpenAPI document behind it, which both come from this server alone."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.http.replies import send_reply

# The page runs its own script and sends requests to this server only.
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'",
    )
]


class DocsRoute:
    """An ASGI endpoint of a page that shows the routes and sends requests."""

    def __init__(self) -> None:
        self._page = (files("textmill_router.api.openapi") / "page.html").read_bytes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_reply(scope, send, 200, self._page, content_type=b"text/html; charset=utf-8", headers=_HEADERS)


class OpenApiRoute:
    """An ASGI endpoint. `build` makes the document when it is first asked for, in about 10 ms."""

    def __init__(self, build: Callable[[], dict[str, Any]]) -> None:
        self._build = build
        self._document = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._document:
            self._document = msgspec.json.encode(self._build())
        await send_reply(scope, send, 200, self._document)
