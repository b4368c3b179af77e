"""The range of a numeric parameter, which is one row of the table by which bodies are read and parameters checked."""

import math
from array import array
from dataclasses import dataclass, field, fields
from typing import Any

from textmill_router.errors import RuleBroken

MAX_I32 = 2**31 - 1
MAX_U32 = 2**32 - 1
MAX_U64 = 2**64 - 1
MAX_SHOWN_DIGITS = 32  # of a whole number in an error
# Logits divided by a lower temperature leave the range of 32-bit floats, and the draw is the best token.
LEAST_TEMPERATURE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The range of one parameter, from `low` to `high`; `excludes_low` and `excludes_high` leave out that edge.

    A parameter that is absent counts as `off`. `note` stands in brackets in a refusal. Where `asks_to_sample` is set, a
    value other than `off` makes the request sample.
    """

    low: float
    high: float
    off: float | None = None
    is_whole: bool = True
    excludes_low: bool = False
    excludes_high: bool = False
    note: str = ""
    asks_to_sample: bool = False

    def check(self, name: str, value: float | None, *, high: float | None = None) -> float | None:
        """Return the value, or `off` for None. `high` replaces the upper edge of the row. Raises RuleBroken.

        A number that is not whole must be finite in 32 bits, the width on the wire. A number too small for 32 bits
        becomes 0. An upper edge that is left out is compared with the number in 32 bits, because the shard does so too.
        """
        if value is None:
            return self.off
        if not self.is_whole:
            value = _finite32(name, value)
        high = self.high if high is None else high
        is_above = self.low < value if self.excludes_low else self.low <= value
        is_below = rounded32(value) < high if self.excludes_high else value <= high
        if not (is_above and is_below):
            note = f" ({self.note})" if self.note else ""
            raise _refuse(name, f"must be {self._words(high)}{note}", shown_number(value))
        return value

    def _words(self, high: float) -> str:
        low_text, high_text = _text(self.low), _text(high)
        if not (self.excludes_low or self.excludes_high or math.isinf(high)):
            return f"{low_text} to {high_text}"
        above = f"{'>' if self.excludes_low else '>='} {low_text}"
        return above if math.isinf(high) else f"{above} and {'<' if self.excludes_high else '<='} {high_text}"


def whole(*, low: int, high: int, off: int, asks_to_sample: bool = False) -> Any:
    """Return a dataclass field that is a row of the table, for whole numbers."""
    return _row(Bounds(low=low, high=high, off=off, asks_to_sample=asks_to_sample))


def real(
    *,
    low: float,
    off: float,
    high: float = math.inf,
    excludes_low: bool = False,
    excludes_high: bool = False,
    note: str = "",
    asks_to_sample: bool = False,
) -> Any:
    """Return a dataclass field that is a row of the table, for 32-bit floats.

    Without a `note`, a refusal says which value is off.
    """
    bounds = Bounds(
        low=low,
        high=high,
        off=off,
        is_whole=False,
        excludes_low=excludes_low,
        excludes_high=excludes_high,
        note=note or f"{off:g} is off",
        asks_to_sample=asks_to_sample,
    )
    return _row(bounds)


def bounds_of(kind: type[Any]) -> dict[str, Bounds]:
    """Return the fields of a dataclass that are rows of the table, by name and in their order."""
    return {one.name: one.metadata["bounds"] for one in fields(kind) if "bounds" in one.metadata}


def _row(bounds: Bounds) -> Any:
    return field(default=bounds.off, metadata={"bounds": bounds})


def _text(value: float) -> str:
    return f"{value}" if isinstance(value, int) else f"{value:g}"


def rounded32(value: float) -> float:
    """Return the 32-bit float that stands for a number on the wire: 0 for one too small, infinity for one too large."""
    try:
        return array("f", [value])[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def shown_number(value: float) -> str:
    """Return a number in a few characters. A whole number of JSON may have more digits than a float can hold."""
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= MAX_SHOWN_DIGITS else f"{text[:MAX_SHOWN_DIGITS]}... ({len(text)} digits)"


def _finite32(name: str, value: float) -> float:
    rounded = rounded32(value)
    if not math.isfinite(rounded):
        raise _refuse(name, "must be a finite 32-bit number", f"{value:g}")
    return value if rounded else 0.0


def _refuse(name: str, rule: str, found: str) -> RuleBroken:
    return RuleBroken(f"`{{field}}` {rule}, found {found}", field=name)
