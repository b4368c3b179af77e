"""What a body of a task is: the bytes decide, and then the type.

Clients send JSON without a type, and curl sends JSON as a form. A text task also reads a plain text.
"""

import re

import msgspec
from starlette.types import Receive, Scope

from textmill_router.errors import UnknownContentCoding, UnsupportedMediaType, ValidationFailed
from textmill_router.http.json_body import header_of, read_bytes

_JSON_TYPE = re.compile(rb"application/([\w.!#$&^+-]+\+)?json")
# Types that say nothing, because clients send them by default.
_UNSAID = frozenset({b"", b"application/octet-stream", b"application/x-www-form-urlencoded"})


async def read_task_json(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Return the body of a text task as JSON.

    Raises PayloadTooLarge, UnsupportedMediaType, ValidationFailed and ClientLeft.
    """
    body = await read_bytes(scope, receive, max_bytes)
    coding = header_of(scope, b"content-encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        raise UnknownContentCoding(f"the body must not be coded, found content-encoding {coding.decode('latin-1')!r}")
    kind = (header_of(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
    if body.lstrip()[:1] == b"{" or _JSON_TYPE.fullmatch(kind):
        return body
    if kind == b"text/plain":
        try:
            return msgspec.json.encode({"inputs": body.decode()})
        except UnicodeDecodeError as error:
            raise ValidationFailed(f"the body must be a text in UTF-8, found a byte that is none: {error}") from None
    found = "no type" if kind in _UNSAID else repr(kind.decode("latin-1"))
    raise UnsupportedMediaType(
        f"the body must be a JSON object (content-type application/json) or a text (text/plain), found {found}"
    )
