"""The headers in which a call shows its API key."""

import re
from collections.abc import Sequence

from textmill_router.http.error_responses import Header
from textmill_router.http.path_style import AUTHORIZATION, X_API_KEY

_BEARER = re.compile(rb"bearer:?\s+(\S.*)", re.IGNORECASE | re.DOTALL)  # matches a value without spaces at its ends


def shown_keys(headers: Sequence[Header], key_header: str = AUTHORIZATION) -> list[bytes]:
    """Return all keys that a call shows, in `authorization`, in `x-api-key` and in the header `key_header`."""
    own_names = (X_API_KEY.encode(), key_header.encode())
    shown = []
    for name, value in headers:
        if name == AUTHORIZATION.encode():
            bearer = _BEARER.fullmatch(value.strip())
            shown += [] if bearer is None else [bearer[1]]  # another scheme shows no key
        elif name in own_names:
            shown.append(value.strip())
    return shown
