"""The header of an answer that says which adapter has answered."""

from urllib.parse import quote

from textmill_router.http.error_responses import Header
from textmill_router.request import Adapter

_PLAIN = "!#$&'()*+,/:;=?@[]^`{|} "  # beside letters, digits and -._~


def adapter_headers(adapter: Adapter | None) -> list[Header]:
    """Return `x-adapter-id` with the adapter's name, whose other characters are percent-encoded; none for the base."""
    return [] if adapter is None else [(b"x-adapter-id", quote(adapter.name, safe=_PLAIN).encode())]
