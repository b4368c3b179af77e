"""A JSON body is read and checked: its length, its type, its syntax and its shape, in this order, in each dialect."""

import re
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive, Scope

from textmill_router.errors import (
    InvalidJson,
    PayloadTooLarge,
    RequestError,
    UnknownContentCoding,
    UnsupportedMediaType,
    ValidationFailed,
)
from textmill_router.http.json_depth import MAX_JSON_DEPTH, is_too_deep

# A refused body is read to its end up to this many times the limit: a client that writes before it reads must get to
# see the answer instead of a reset connection.
DISCARD_FACTOR = 16

_JSON_TYPE = re.compile(rb"\s*application/([\w.!#$&^+-]+\+)?json\s*(;.*)?", re.IGNORECASE)
_PATH = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_WHOLE = re.compile(r"-?(0|[1-9]\d*)")  # a key that is a whole number
_ANY_KEY = "[...]"  # in a path of msgspec: the value of a key that msgspec does not name
# Types of JSON by the names that msgspec has for them.
_JSON_TYPES = {str: "str", int: "int", float: "float", bool: "bool", list: "array", dict: "object", type(None): "null"}
MAX_SHOWN_KEY = 64  # characters of a client's key in an error

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
    body = await _read_bytes(scope, receive, max_bytes)
    content_type = _header(scope, b"content-type")
    if content_type is None or not _JSON_TYPE.fullmatch(content_type):
        found = "none" if content_type is None else repr(content_type.decode("latin-1"))
        raise UnsupportedMediaType(f"the header content-type must be application/json, found {found}")
    coding = _header(scope, b"content-encoding")
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
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        value = _check_syntax(body)  # syntax comes before shape, wherever each fault stands
        raise _shape_error(str(error), value) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJson(f"the body is not JSON: {error}") from None


def _check_syntax(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJson(f"the body is not JSON: {error}") from None


def _shape_error(text: str, body: Any) -> RequestError:
    """Return the error with the path in front, as in "`parameters.stop[0]`: expected `str`, got `int`"."""
    match = _PATH.match(text)
    assert match is not None, text
    what = match["what"][:1].lower() + match["what"][1:].replace(" | null", "")
    path = (match["path"] or "").removeprefix(".")
    if match["key"]:
        what += " as a key"
        wrong_keys = [key for key in _object_at(body, path) if not _WHOLE.fullmatch(key)]
        what += f", found {_short(wrong_keys[0])!r}" if wrong_keys else ""
    elif path.endswith(_ANY_KEY):
        path = path.removesuffix(_ANY_KEY)
        wrong = what.rpartition("got `")[2].rstrip("`")
        wrong_keys = [key for key, value in _object_at(body, path).items() if _JSON_TYPES[type(value)] == wrong]
        path += f".{_short(wrong_keys[0])}" if wrong_keys else ""
    return ValidationFailed(f"`{path}`: {what}" if path else what, field=path)


def _object_at(body: Any, path: str) -> dict[str, Any]:
    """Return the object at a path of field names and places in arrays.

    The result is empty where a key that is given twice hides the object.
    """
    try:
        for name, place in _STEP.findall(path):
            body = body[int(place)] if place else body[name]
    except (KeyError, IndexError, TypeError):
        return {}
    return body if isinstance(body, dict) else {}


def _short(key: str) -> str:
    return key if len(key) <= MAX_SHOWN_KEY else f"{key[:MAX_SHOWN_KEY]}..."


async def _read_bytes(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Return the whole body, whose bytes are counted while they come."""
    declared = _header(scope, b"content-length")
    is_too_large = declared is not None and int(declared) > max_bytes
    if is_too_large and _header(scope, b"expect") is not None:
        raise _too_large(max_bytes)  # the client asks before it sends
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part: bytes = message.get("body", b"")
        num_bytes += len(part)
        is_too_large = is_too_large or num_bytes > max_bytes
        if is_too_large:
            parts.clear()
        else:
            parts.append(part)
        if not message.get("more_body", False) or num_bytes > DISCARD_FACTOR * max_bytes:
            break
    if is_too_large:
        raise _too_large(max_bytes)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body must have at most {max_bytes} bytes (--payload-limit); send a shorter prompt")


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None
