"""Expressions for numbers of any length between bounds. A number is written without exponent and without `-0`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from textmill_router.exact_json import (
    MAX_EXACT_EXPONENT,
    decimal_of,
    is_number,
    is_whole,
    significant_digits,
)

MAX_DIGITS = 200  # of a bound, without zeros at the end: an expression is nested as deep
MAX_LENGTH = 2_000  # of a bound that is written out
_MAX_PLAIN_INTEGER = 1 << 53
_MAX_PLAIN_DIGITS = 15
_MIN_PLAIN_EXPONENT = -12
_MAX_STEP_DIGITS = 5  # of a `multipleOf`: an automaton has a state for each remainder
_MAX_NEIGHBOURS = 64
_MAX_LIBRARY_STEP = (1 << 32) - 1
_MAX_LISTED = 100  # multiples between two bounds that are written one by one
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


@dataclass(frozen=True, slots=True)
class NumberRange:
    """Numbers from `low` to `high`, None where there is no bound. `step`: the power of ten they are a multiple of."""

    low: Decimal | None = None
    high: Decimal | None = None
    is_above_low: bool = False  # `low` itself is left out
    is_below_high: bool = False
    max_decimals: int | None = None  # digits behind the point


def is_plain(number: float) -> bool:
    """Whether the library, which reads numbers as 64-bit floats, reads the number exactly as it is."""
    if isinstance(number, int):
        return abs(number) < _MAX_PLAIN_INTEGER
    value = decimal_of(number)
    digits, exponent = significant_digits(value)
    return len(digits) <= _MAX_PLAIN_DIGITS and exponent >= _MIN_PLAIN_EXPONENT and abs(value) < _MAX_PLAIN_INTEGER


def lets_zero_through(*schemas: Mapping[str, Any]) -> bool:
    """Whether the library lets 0 through, where by all of the schemas only numbers above 0 and below 1 match."""
    lows = [schema[key] for schema in schemas for key in ("minimum", "exclusiveMinimum") if is_number(schema.get(key))]
    highs = [schema[key] for schema in schemas for key in ("maximum", "exclusiveMaximum") if is_number(schema.get(key))]
    is_open = any(schema.get("exclusiveMinimum") == 0 for schema in schemas)
    return is_open and max(lows) == 0 and bool(highs) and min(highs) < 1


def library_step(number: float) -> float | None:
    """The float that the library takes for this `multipleOf`, None where there is none or the step is too dear.

    The library multiplies by ten until no fraction is left, which rounds; a neighbour of the nearest float may come
    out right where the nearest float does not.
    """
    value = decimal_of(number).copy_abs()
    digits, exponent = significant_digits(value)
    if not digits or len(digits) > _MAX_STEP_DIGITS or not _MIN_PLAIN_EXPONENT <= exponent <= 9 - len(digits):
        return None
    if exponent >= 0:
        return int(value)
    wanted = (int(digits), -exponent)
    low = high = float(value)
    for _ in range(_MAX_NEIGHBOURS):
        for candidate in (low, high):
            if _read_by_library(candidate) == wanted:
                return candidate
        low, high = math.nextafter(low, 0.0), math.nextafter(high, math.inf)
    return None


def _read_by_library(value: float) -> tuple[int, int] | None:
    exponent = 0
    while value % 1.0 != 0.0:
        value *= 10.0
        exponent += 1
    coefficient = int(value)
    if not 0 < coefficient <= _MAX_LIBRARY_STEP:
        return None
    while exponent > 0 and coefficient % 10 == 0:
        coefficient, exponent = coefficient // 10, exponent - 1
    return coefficient, exponent


def is_rounded_step(value: float) -> bool:
    """Whether no 64-bit float is this `multipleOf`, so that the library rounds the bounds beside the keyword."""
    number = decimal_of(value)
    return abs(number.adjusted()) > MAX_EXACT_EXPONENT or Fraction(float(number)) != Fraction(number)


def is_multiple(number: Decimal, step: float) -> bool | None:
    """Whether the number is a multiple of the step; None where a number is too long to be divided."""
    divisor = decimal_of(step)
    if any(abs(value.adjusted()) > MAX_EXACT_EXPONENT for value in (number, divisor)):
        return None
    return Fraction(number) % Fraction(divisor) == 0


def are_bounds_misread(schema: Mapping[str, Any]) -> bool:
    """Whether the library, which moves each bound to a multiple in floats, moves a bound past a multiple."""
    step = library_step(schema.get("multipleOf", 0))
    ends = _counted_ends(schema)
    if step is None or ends is None:
        return False
    (low, first, is_above_low), (high, last, is_below_high) = ends
    exact = decimal_of(schema["multipleOf"])
    return _is_rounded_past(low, first, exact, step, is_above_low, math.ceil) or _is_rounded_past(
        high, last, exact, step, is_below_high, math.floor
    )


def listed_multiples(schema: Mapping[str, Any]) -> list[str] | None:
    """An expression for each multiple between two bounds; None where the multiples are more than a hundred."""
    ends = _counted_ends(schema)
    if ends is None:
        return None
    (low, first, is_above_low), (high, last, is_below_high) = ends
    if first is None or last is None or last - first >= _MAX_LISTED:
        return None
    step = decimal_of(schema["multipleOf"])
    numbers = NumberRange(low, high, is_above_low, is_below_high)
    found = [value for count in range(first, last + 1) if _is_inside(value := count * step, numbers)]
    return [("-" if value < 0 else "") + _equal(value.copy_abs()) for value in found]


_End = tuple[Decimal | None, int | None, bool]


def _counted_ends(schema: Mapping[str, Any]) -> tuple[_End, _End] | None:
    """Each bound, the number of steps to the outermost multiple inside, and whether the bound is left out.

    None where a number is too long to be counted in steps.
    """
    step = decimal_of(schema["multipleOf"])
    low, is_above_low = _bound(schema, "minimum", "exclusiveMinimum", max)
    high, is_below_high = _bound(schema, "maximum", "exclusiveMaximum", min)
    given = [step, *(bound for bound in (low, high) if bound is not None)]
    if any(abs(number.adjusted()) > _MAX_PLAIN_DIGITS for number in given if number):
        return None
    first = None if low is None else math.ceil(Fraction(low) / Fraction(step))
    last = None if high is None else math.floor(Fraction(high) / Fraction(step))
    return (low, first, is_above_low), (high, last, is_below_high)


def _is_rounded_past(
    bound: Decimal | None,
    count: int | None,
    step: Decimal,
    float_step: float,
    is_open: bool,
    rounded: Callable[[float], int],
) -> bool:
    """Whether the float that the library takes for the outermost multiple is not this multiple of `count` steps."""
    if bound is None or count is None:
        return False
    exact = count * step
    read = Decimal(repr(rounded(float(bound) / float_step) * float_step))
    outer = read > exact if rounded is math.ceil else read < exact
    return outer or (is_open and exact == bound and read != exact)


def number_range(schema: dict[str, Any], *, is_integer: bool) -> NumberRange | None:
    """The range that a schema of numbers asks for; None where no expression of this file can say it."""
    if any(key in schema and not is_number(schema[key]) for key in (*BOUNDS, "multipleOf")):
        return None
    low, is_above_low = _bound(schema, "minimum", "exclusiveMinimum", max)
    high, is_below_high = _bound(schema, "maximum", "exclusiveMaximum", min)
    max_decimals = 0 if is_integer else None
    if "multipleOf" in schema:
        digits, exponent = significant_digits(decimal_of(schema["multipleOf"]))
        if digits != "1" or exponent > 0:
            return None
        max_decimals = min(-exponent, max_decimals if max_decimals is not None else MAX_LENGTH)
    for bound in (low, high):
        if bound is not None and not _can_be_written(bound):
            return None
    return NumberRange(low, high, is_above_low, is_below_high, max_decimals)


def _bound(schema: Mapping[str, Any], closed: str, opened: str, stricter: Any) -> tuple[Decimal | None, bool]:
    """The stricter of two bounds, and whether the bound itself is left out."""
    found = [(decimal_of(schema[key]), key == opened) for key in (closed, opened) if key in schema]
    if not found:
        return None, False
    value = stricter(number for number, _ in found)
    return value, any(is_open for number, is_open in found if number == value)


def _can_be_written(bound: Decimal) -> bool:
    digits, exponent = significant_digits(bound)
    return len(digits) <= MAX_DIGITS and abs(bound.adjusted()) <= MAX_LENGTH and abs(exponent) <= MAX_EXACT_EXPONENT


def range_terminals(name: str, numbers: NumberRange) -> list[str]:
    """Definitions of terminals, of which `name` matches the texts of the numbers. Empty where there are none."""
    options = []
    lines = []
    is_zero_in = _is_inside(Decimal(0), numbers)
    positive = _magnitudes(numbers.low, numbers.is_above_low, numbers.high, numbers.is_below_high, numbers.max_decimals)
    if numbers.high is not None and numbers.high < 0:
        positive = None
    minus_high = None if numbers.high is None else numbers.high.copy_negate()  # `-` would round
    minus_low = None if numbers.low is None else numbers.low.copy_negate()
    negative = _magnitudes(minus_high, numbers.is_below_high, minus_low, numbers.is_above_low, numbers.max_decimals)
    if numbers.low is not None and numbers.low > 0:
        negative = None
    if positive is not None:
        lines.append(f"{name}_P: {positive}")
        options.append(f"{name}_P")
    elif is_zero_in:
        options.append('"0"')
    if negative is not None:
        lines.append(f"{name}_M: {negative} & ~/{_equal(Decimal(0))}/")
        options.append(f'"-" {name}_M')
    return [*lines, f"{name}: {' | '.join(options)}"] if options else []


def _is_inside(value: Decimal, numbers: NumberRange) -> bool:
    above = numbers.low is None or value > numbers.low or (value == numbers.low and not numbers.is_above_low)
    return above and (
        numbers.high is None or value < numbers.high or (value == numbers.high and not numbers.is_below_high)
    )


def _magnitudes(
    low: Decimal | None, is_above_low: bool, high: Decimal | None, is_below_high: bool, max_decimals: int | None
) -> str | None:
    """An expression for the numbers from 0 on between two bounds; None where there are none of them."""
    if high is not None and (high < 0 or (high == 0 and is_below_high)):
        return None
    fraction = {None: r"(\.[0-9]+)?", 0: ""}.get(max_decimals, rf"(\.[0-9]{{1,{max_decimals}}})?")
    parts = [f"/(0|[1-9][0-9]*){fraction}/"]
    if low is not None and low >= 0:
        parts.append(f"/{_at_least(low)}/")
        parts += [f"~/{_equal(low)}/"] if is_above_low else []
    if high is not None:
        above = f"/{_at_least(high)}/"
        parts.append(f"~{above}" if is_below_high else f"(~{above} | /{_equal(high)}/)")
    return " & ".join(parts)


def _digits(value: Decimal) -> tuple[str, str]:
    """Of a number from 0 on: digits before the point, and those behind without zeros at the end."""
    digits, exponent = significant_digits(value)
    if exponent >= 0:
        return (digits + "0" * exponent) or "0", ""
    digits = digits.rjust(1 - exponent, "0")
    return digits[:exponent], digits[exponent:]


def _at_least(value: Decimal) -> str:
    """All texts of numbers that are as large, and some that are no numbers."""
    whole, fraction = _digits(value)
    rest = r"(\.[0-9]+)?"
    tail = _fraction_at_least(fraction)
    kept = whole.rstrip("0") if not fraction else whole
    nested = f"[0-9]{{{len(whole) - len(kept)}}}{rest}" if not fraction else tail
    for place in reversed(range(len(kept))):
        digit = int(kept[place])
        larger = f"|[{digit + 1}-9][0-9]{{{len(whole) - place - 1}}}{rest}" if digit < 9 else ""
        nested = f"({digit}{nested}{larger})"
    return f"({nested}|[1-9][0-9]{{{len(whole)},}}{rest})"


def _fraction_at_least(fraction: str) -> str:
    nested = "[0-9]*"
    for digit in map(int, reversed(fraction)):
        larger = f"|[{digit + 1}-9][0-9]*" if digit < 9 else ""
        nested = f"({digit}{nested}{larger})"
    return rf"\.{nested}"


def _equal(value: Decimal) -> str:
    whole, fraction = _digits(value)
    return rf"{whole}\.{fraction}0*" if fraction else rf"{whole}(\.0+)?"


assert is_whole(Decimal("1.0"))
