"""A JSON body is read and checked: its length, its type, its syntax and its shape, in this order, in each dialect."""

import codecs
import re
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive, Scope

from textmill_router.errors import (
    InvalidJson,
    PayloadTooLarge,
    UnknownContentCoding,
    UnsupportedMediaType,
)
from textmill_router.http.json_depth import MAX_JSON_DEPTH, is_too_deep
from textmill_router.http.json_shape import shape_error

_JSON_TYPE = re.compile(rb"\s*application/([\w.!#$&^+-]+\+)?json\s*(;.*)?", re.IGNORECASE)
# Reads any JSON. A number beyond the range of floats is infinity and no fault of the syntax.
_ANY_JSON = msgspec.json.Decoder(float_hook=float)

Struct = TypeVar("Struct")


class ClientLeft(Exception):
    """The client has closed the connection, so that nobody is there to answer."""


async def read_json(scope: Scope, receive: Receive, decoder: msgspec.json.Decoder[Struct], max_bytes: int) -> Struct:
    """Return the body as a struct.

    Raises PayloadTooLarge, UnsupportedMediaType, InvalidJson, ValidationFailed and ClientLeft.
    """
    return decode_json(await read_body(scope, receive, max_bytes), decoder)


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Return the bytes of a body whose headers say JSON.

    Raises PayloadTooLarge, UnsupportedMediaType and ClientLeft.
    """
    body = await read_bytes(scope, receive, max_bytes)
    content_type = header_of(scope, b"content-type")
    if content_type is None or not _JSON_TYPE.fullmatch(content_type):
        found = "none" if content_type is None else repr(content_type.decode("latin-1"))
        raise UnsupportedMediaType(f"the header content-type must be application/json, found {found}")
    coding = header_of(scope, b"content-encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        raise UnknownContentCoding(f"the body must not be coded, found content-encoding {coding.decode('latin-1')!r}")
    return body


def decode_json(body: bytes, decoder: msgspec.json.Decoder[Struct]) -> Struct:
    """Return the body as a struct.

    Raises InvalidJson for bytes that are not JSON, and ValidationFailed with the path of a field of the wrong shape.
    """
    if is_too_deep(body):
        raise InvalidJson(f"the body is nested too deep: more than {MAX_JSON_DEPTH} levels")
    try:
        if not body.isascii():
            str(body, "utf-8")  # the decoder passes over the bytes of fields that it does not know
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        value = _check_syntax(body)  # syntax comes before shape, wherever each fault stands
        raise shape_error(str(error), value, wanted=decoder.type) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(body, error) from None


def _not_json(body: bytes, error: Exception) -> InvalidJson:
    """Return the refusal of a body that is not JSON. Programs on Windows write marks before texts, or use UTF-16."""
    marked = any(body.startswith(mark) for mark in (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    advice = "; the body begins with a byte order mark: send UTF-8 without one" if marked else ""
    return InvalidJson(f"the body is not JSON: {error}{advice}")


def _check_syntax(body: bytes) -> Any:
    """Return the value of a body, or None where the body holds a whole number of more digits than Python reads."""
    try:
        msgspec.json.decode(body, type=msgspec.Raw)  # the syntax alone, to the end of the body
        return _ANY_JSON.decode(body)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(body, error) from None


async def read_bytes(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Return the whole body, whose bytes are counted while they come.

    A body that is announced or found too long is refused at once; `guard.py` throws the rest of such a body away.
    """
    declared = header_of(scope, b"content-length")
    if declared is not None and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part: bytes = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            break
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body must have at most {max_bytes} bytes (--payload-limit, for a model that takes files "
        "--media-payload-limit); send less"
    )


def header_of(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header of a name in lower case, or None."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None
