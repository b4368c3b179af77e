"""Says in a sentence which field of a JSON value has the wrong shape, from the words of msgspec."""

import math
import re
from typing import Any

from textmill_router.errors import ValidationFailed
from textmill_router.http.json_words import words_at

_PATH = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"object missing required field `([^`]*)`")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_WHOLE = re.compile(r"-?(0|[1-9]\d*)")  # a key that is a whole number
_ANY_KEY = "[...]"  # in a path of msgspec: the value of a key that msgspec does not name
# Types of JSON by the names that msgspec has for them.
_JSON_TYPES = {str: "str", int: "int", float: "float", bool: "bool", list: "array", dict: "object", type(None): "null"}
_TOO_LARGE = {
    "number out of range": "must be a number in the range of 64-bit floats, found one beyond",
    "integer value out of range": "must be a whole number, found one with more than 4,300 digits",
}
_WRONG_WORD = "invalid enum value "
MAX_SHOWN_KEY = 64  # characters of a client's key in an error


def shape_error(text: str, value: Any, root: str = "", *, wanted: Any = Any) -> ValidationFailed:
    """Return the error with the path in front, as in "`parameters.stop[0]`: expected `str`, got `int`".

    `text` is the message of `msgspec.ValidationError`. `value` is the value as it was decoded without a type, and
    `root` the path of the value in the body. `wanted` is the type of the value, which has the words of a field that
    takes a few words alone.
    """
    match = _PATH.match(text)
    assert match is not None, text
    what = match["what"][:1].lower() + match["what"][1:].replace(" | null", "")
    path = (match["path"] or "").removeprefix(".")
    if match["key"]:
        what += " as a key"
        wrong_keys = [key for key in _object_at(value, path) if not _WHOLE.fullmatch(key)]
        what += f", found {_short(wrong_keys[0])!r}" if wrong_keys else ""
    elif path.endswith(_ANY_KEY):
        path = path.removesuffix(_ANY_KEY)
        wrong_keys = [key for key, entry in _object_at(value, path).items() if _is_blamed(entry, what)]
        path += f".{_short(wrong_keys[0])}" if wrong_keys else ""
    if what.startswith(_WRONG_WORD) and (words := words_at(wanted, path)):
        what = f"must be one of {', '.join(words)}, found {what.removeprefix(_WRONG_WORD)}"
    path = _joined(root, path)
    missing = _MISSING.fullmatch(what)
    if missing is not None:
        path = _joined(path, missing[1])
        return ValidationFailed(f"`{path}` is missing; add the field", field=path)
    if what in _TOO_LARGE:
        return ValidationFailed(f"`{path}` {_TOO_LARGE[what]}" if path else what, field=path)
    return ValidationFailed(f"`{path}`: {what}" if path else what, field=path)


def _joined(first: str, second: str) -> str:
    return f"{first}.{second}" if first and second and not second.startswith("[") else first + second


def _is_blamed(entry: Any, what: str) -> bool:
    """Whether the words of msgspec are about this entry of an object."""
    if what in _TOO_LARGE:
        return isinstance(entry, float) and math.isinf(entry)
    return _JSON_TYPES[type(entry)] == what.rpartition("got `")[2].rstrip("`")


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
