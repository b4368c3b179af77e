"""What a body of a task is: the bytes decide, and then the type.

Clients send JSON without a type, and curl sends JSON as a form. A text task also reads a plain text, and for a task of
images or audio each body that is no JSON is a file.
"""

import re
from dataclasses import dataclass

import msgspec
from starlette.types import Receive, Scope

from textmill_router.errors import PayloadTooLarge, UnknownContentCoding, UnsupportedMediaType, ValidationFailed
from textmill_router.http.json_body import header_of, read_bytes

_JSON_TYPE = re.compile(rb"application/([\w.!#$&^+-]+\+)?json")


@dataclass(frozen=True, slots=True)
class TaskBytes:
    """The bytes of a body: JSON, or a file."""

    data: bytes
    is_file: bool = False


def is_said_json(scope: Scope) -> bool:
    """Whether the headers of a call say that its body is JSON."""
    return _JSON_TYPE.fullmatch(_kind_of(scope)) is not None


async def read_task_file(scope: Scope, receive: Receive, max_bytes: int) -> TaskBytes:
    """Return the body of a task of images or audio.

    Raises PayloadTooLarge, UnsupportedMediaType, ValidationFailed and ClientLeft.
    """
    try:
        body = await read_bytes(scope, receive, max_bytes)
    except PayloadTooLarge:
        raise PayloadTooLarge(
            f"the body must have at most {max_bytes} bytes (--media-payload-limit); send a smaller file"
        ) from None
    _check_coding(scope)
    kind = _kind_of(scope)
    if _is_json(body, kind):
        return TaskBytes(body)
    if kind == b"multipart/form-data":
        raise UnsupportedMediaType(
            "the body must be the file itself, or JSON with the file in base64, found a form (multipart/form-data)"
        )
    return TaskBytes(body, is_file=True)


async def read_task_json(scope: Scope, receive: Receive, max_bytes: int) -> TaskBytes:
    """Return the body of a text task as JSON.

    Raises PayloadTooLarge, UnsupportedMediaType, ValidationFailed and ClientLeft.
    """
    body = await read_bytes(scope, receive, max_bytes)
    _check_coding(scope)
    kind = _kind_of(scope)
    if _is_json(body, kind):
        return TaskBytes(body)
    if kind == b"text/plain":
        try:
            return TaskBytes(msgspec.json.encode({"inputs": body.decode()}))
        except UnicodeDecodeError as error:
            raise ValidationFailed(f"the body must be a text in UTF-8, found a byte that is none: {error}") from None
    said = f"of the content-type {kind.decode('latin-1')!r}" if kind else "without a content-type"
    found = f"a body {said} that begins otherwise" if body.strip() else f"an empty body {said}"
    raise UnsupportedMediaType(
        "the body must be a JSON object, which begins with '{', or a text of the content-type text/plain, found "
        + found
    )


def _check_coding(scope: Scope) -> None:
    coding = header_of(scope, b"content-encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        raise UnknownContentCoding(f"the body must not be coded, found content-encoding {coding.decode('latin-1')!r}")


def _kind_of(scope: Scope) -> bytes:
    return (header_of(scope, b"content-type") or b"").partition(b";")[0].strip().lower()


def _is_json(body: bytes, kind: bytes) -> bool:
    return body.lstrip()[:1] == b"{" or _JSON_TYPE.fullmatch(kind) is not None
