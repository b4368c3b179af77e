"""The files of the playground and the policy under which a browser runs them."""

import functools
from pathlib import Path

from textmill_router.http.assets import CONTENT_TYPES, load_assets
from textmill_router.http.static_pages import StaticPage

FOLDER = Path(__file__).parent / "page"
# Scripts and styles come from this server alone, and no code may write HTML but the sanitiser. `connect-src` is open,
# because the user may add further servers by their address; the page asks no other server by itself.
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    b"connect-src 'self' http: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types dompurify"
)


@functools.cache
def load_playground() -> StaticPage:
    """Return the page. The first call reads and compresses the files, in some 20 ms."""
    found = (path for path in sorted(FOLDER.rglob("*")) if path.suffix in CONTENT_TYPES)
    assets = load_assets({path.relative_to(FOLDER).as_posix(): path for path in found})
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    return StaticPage(html=html, assets=assets, folder="playground/", policy=POLICY)
