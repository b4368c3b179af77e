"""JSON whose numbers keep their text: a schema may hold numbers that no 64-bit float can."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

import msgspec

MAX_EXACT_EXPONENT = 5_000  # numbers with more zeros than this are compared by size alone, never written out
_MAX_INTEGER_DIGITS = 4_000  # Python turns no longer text into an integer
_LARGEST_EXPONENT = 10**17  # a decimal takes 10 times this, and digits before or behind the point move the exponent
_FLOAT = re.compile(r"[:,\[]-?(\d+[.eE]|Infinity)|^-?(\d+[.eE]|Infinity)")

_Body = TypeVar("_Body")


class WrittenFloat(float):
    """A number with a fraction or an exponent. As a float its value is the nearest one; `text` is what was written."""

    text: str

    @classmethod
    def read(cls, text: str) -> "WrittenFloat":
        """Of a number's text in JSON; also the `float_hook` of decoders of msgspec."""
        number = cls(text)
        number.text = text
        return number


class DoubleKey(ValueError):
    """An object has one key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {json.dumps(key)} stands twice in one object")
        self.key = key


def parse_json(text: str) -> Any:
    """The value of a JSON text, floats as `WrittenFloat`. Raises ValueError, RecursionError for deep nesting."""
    return json.loads(text, parse_float=WrittenFloat.read, parse_int=_whole, parse_constant=_refuse_constant)


def dump_json(value: Any) -> str:
    """The text of a value, without blanks; numbers as they were written. Raises RecursionError for deep nesting."""
    text = json.dumps(value, separators=(",", ":"))
    return "".join(_pieces(value)) if _FLOAT.search(text) else text


def exact_decoder(body_type: type[_Body]) -> msgspec.json.Decoder[_Body]:
    """A decoder of bodies that leaves the numbers of untyped fields as they were written."""
    return msgspec.json.Decoder(body_type, float_hook=WrittenFloat.read)


def encode_exactly(value: Any) -> bytes:
    """Write a value that `exact_decoder` has read as JSON again."""
    return msgspec.json.encode(value, enc_hook=_written)


def _written(value: object) -> msgspec.Raw:
    if isinstance(value, WrittenFloat):
        return msgspec.Raw(value.text.encode())
    raise TypeError(f"{type(value)} is no value of JSON")


def number_text(number: float) -> str:
    """The number as it was written, or as Python writes the number where nobody wrote it."""
    return number.text if isinstance(number, WrittenFloat) else json.dumps(number)


def is_number(value: object) -> bool:
    """Whether a decoded value is a number of JSON; booleans are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def decimal_of(number: float) -> Decimal:
    """The exact value of a number: the one that its text says, or the shortest text of a float that nobody wrote."""
    return decimal_of_text(number_text(number))


def decimal_of_text(text: str) -> Decimal:
    """The value of a number's text in JSON. An exponent that no decimal has becomes the nearest one that is safe."""
    try:
        return Decimal(text)
    except InvalidOperation:
        mantissa, _, exponent = text.lower().partition("e")
        return Decimal(f"{mantissa}e{exponent[0] if exponent[0] in '+-' else '+'}{_LARGEST_EXPONENT}")


def is_whole(value: Decimal) -> bool:
    """Whether a number has no fraction."""
    sign_digits_exponent = value.as_tuple()
    exponent = sign_digits_exponent.exponent
    assert isinstance(exponent, int), value
    return exponent >= 0 or not any(sign_digits_exponent.digits[exponent:])


def significant_digits(value: Decimal) -> tuple[str, int]:
    """Digits without zeros at either end, and the power of ten of the last one; `("", 0)` for zero."""
    parts = value.as_tuple()
    assert isinstance(parts.exponent, int), value
    digits = "".join(map(str, parts.digits)).lstrip("0")
    trimmed = digits.rstrip("0")
    return trimmed, parts.exponent + len(digits) - len(trimmed) if trimmed else 0


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield "{"
        for index, (key, entry) in enumerate(value.items()):
            yield f"{',' if index else ''}{json.dumps(key)}:"
            yield from _pieces(entry)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for index, entry in enumerate(value):
            if index:
                yield ","
            yield from _pieces(entry)
        yield "]"
    elif is_number(value):
        yield number_text(value)
    else:
        yield json.dumps(value)


def _whole(text: str) -> float:
    if len(text) <= _MAX_INTEGER_DIGITS:
        return int(text)
    return WrittenFloat.read(text)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def parse_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its pairs, the `object_pairs_hook` of a reader of JSON. Raises DoubleKey."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DoubleKey(key)
            seen.add(key)
    return found
