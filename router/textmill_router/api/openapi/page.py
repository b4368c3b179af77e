"""GET /docs, which is Swagger UI from its package, and the OpenAPI document that the page shows."""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.http.assets import load_assets
from textmill_router.http.replies import send_reply
from textmill_router.http.static_pages import StaticPage

FOLDER = Path(__file__).parent / "docs"
# Swagger UI draws its arrows as data: images. The page asks no other server.
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@functools.cache
def load_docs(has_playground: bool) -> StaticPage:
    """Return the page. The first call reads and compresses Swagger UI, in some 100 ms."""
    swagger = _swagger_folder()
    assets = load_assets(
        {
            "swagger-ui.css": swagger / "swagger-ui.css",
            "swagger-ui-bundle.js": swagger / "swagger-ui-bundle.js",
            "favicon.png": swagger / "favicon-32x32.png",
            "docs.css": FOLDER / "docs.css",
            "docs.js": FOLDER / "docs.js",
        }
    )
    html = (FOLDER / "docs.html").read_text(encoding="utf-8")
    html = html.replace("[[playground]]", "playground" if has_playground else "")
    return StaticPage(html=html, assets=assets, folder="docs/", policy=POLICY)


def _swagger_folder() -> Path:
    """Return the folder of Swagger UI in the package swagger-ui-py, whose Python code is not imported."""
    found = importlib.util.find_spec("swagger_ui")
    assert found is not None, "swagger-ui-py is a dependency of the router"
    assert found.origin is not None
    return Path(found.origin).parent / "static"


class OpenApiRoute:
    """An ASGI endpoint. `build` makes the document when it is first asked for, in about 10 ms.

    `root_path` is the prefix under which clients reach the server; the document names the prefix as its server.
    """

    def __init__(self, build: Callable[[], dict[str, Any]], root_path: str) -> None:
        self._build = build
        self._root_path = root_path
        self._document = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._document:
            servers = {"servers": [{"url": self._root_path}]} if self._root_path else {}
            self._document = msgspec.json.encode({**self._build(), **servers})
        await send_reply(scope, send, 200, self._document)
