"""Pages for browsers: an HTML file that names its assets by digest, and the route of the assets."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from textmill_router.errors import RouteNotFound
from textmill_router.http.assets import Assets
from textmill_router.http.error_responses import Header
from textmill_router.http.replies import send_error, send_reply

_FOREVER = b"public, max-age=31536000, immutable"
_PLACE = re.compile(r"\{\{([\w./-]+)\}\}")
_GZIP = re.compile(rb"(?:^|,)\s*(?:gzip|\*)\s*(?!;\s*q=0(?:\.0*)?\s*(?:,|$))", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class StaticPage:
    """An HTML file with `{{path}}` in the place of the name of an asset, the assets, and the page's policy.

    `folder` stands before the names of the assets and is relative to the page, so a prefix that a proxy adds to the
    path of the page reaches the assets too. `policy` is the Content-Security-Policy.
    """

    html: str
    assets: Assets
    folder: str
    policy: bytes

    def body(self) -> bytes:
        """Return the HTML with the names of the assets. Raises KeyError for a path that is no asset."""
        return _PLACE.sub(lambda found: self.folder + self.assets.names[found[1]], self.html).encode()


class PageRoute:
    """An ASGI endpoint of a page. `load` reads the files when the page is first asked for, in a thread."""

    def __init__(self, load: Callable[[], StaticPage]) -> None:
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = await asyncio.to_thread(self._load)
        headers: list[Header] = [
            (b"cache-control", b"no-cache"),
            (b"content-security-policy", page.policy),
            (b"referrer-policy", b"no-referrer"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send_reply(scope, send, 200, page.body(), content_type=b"text/html; charset=utf-8", headers=headers)


class PageElsewhere:
    """An ASGI endpoint that sends a browser to another page.

    `place` is relative to the path, so that a prefix that a proxy adds to the path reaches the other page too.
    """

    def __init__(self, place: str) -> None:
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[Header] = [(b"location", self._place.encode()), (b"cache-control", b"no-cache")]
        await send_reply(scope, send, 307, b"", headers=headers)


class AssetRoute:
    """An ASGI endpoint of the assets of a page; the path has the name of the asset as its parameter `asset`."""

    def __init__(self, load: Callable[[], StaticPage]) -> None:
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name: str = scope["path_params"]["asset"]
        asset = (await asyncio.to_thread(self._load)).assets.by_name.get(name)
        if asset is None:
            await send_error(scope, send, RouteNotFound(f"there is no file {name[:200]!r}; reload the page"))
            return
        headers: list[Header] = [(b"cache-control", _FOREVER), (b"x-content-type-options", b"nosniff")]
        body = asset.body
        if asset.compressed is not None:
            headers.append((b"vary", b"accept-encoding"))
            if _takes_gzip(scope):
                headers.append((b"content-encoding", b"gzip"))
                body = asset.compressed
        await send_reply(scope, send, 200, body, content_type=asset.content_type, headers=headers)


def _takes_gzip(scope: Scope) -> bool:
    return any(key == b"accept-encoding" and _GZIP.search(value) is not None for key, value in scope["headers"])
