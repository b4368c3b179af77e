"""The route that a caller of an unknown path may have meant: a slip of the pen, or the path of another server."""

from collections.abc import Collection
from difflib import get_close_matches

MAX_PATH_CHARACTERS = 200
# Paths of other dialects for chats, whose bodies are not understood here.
_CHATS = ("/v1/responses", "/v1/messages", "/api/chat", "/responses", "/v1/chat", "/chat")
_CHAT = "/v1/chat/completions"
_LIKENESS = 0.8  # of difflib, from 0 to 1: one or two letters of a short path may differ


def near_route(path: str, known: Collection[str]) -> str | None:
    """Return the known route that is nearest to a path, or None where none is near."""
    asked = path[:MAX_PATH_CHARACTERS].rstrip("/")
    if asked in _CHATS and _CHAT in known:
        return _CHAT
    # A part too many, as of a client whose base URL holds a part of the route, or a whole route, already.
    held = [route for route in known if len(route) > 1 and (asked.endswith(route) or asked.startswith(f"{route}/"))]
    if held:
        return max(held, key=len)
    return next(iter(get_close_matches(asked.lower(), known, n=1, cutoff=_LIKENESS)), None)
