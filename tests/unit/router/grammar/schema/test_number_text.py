"""Expressions for numbers match a text exactly where the number lies between the bounds."""

from decimal import Decimal, localcontext
from fractions import Fraction

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textmill_router.exact_json import decimal_of, parse_json
from textmill_router.grammar.schema.number_text import (
    is_plain,
    library_step,
    number_range,
    range_terminals,
)
from textmill_router.grammar.schema.schema_reader import BadSchema
from textmill_router.request import Grammar

from tests.fakes.grammar_judge import Judge, make_library
from tests.fakes.schema_judge import SchemaJudge

JUDGE = Judge()
LETTERS = make_library(())
DIGITS = st.text("0123456789", min_size=1, max_size=25)
NUMBERS = st.builds(
    lambda sign, whole, fraction: f"{sign}{whole.lstrip('0') or '0'}{fraction and f'.{fraction}'}",
    st.sampled_from(["", "", "-"]),
    DIGITS,
    st.text("0123456789", max_size=22),
)
LOWER, UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")


def is_inside(text: str, schema: dict[str, str], *, is_integer: bool) -> bool:
    """By decimal arithmetic, one bound after the other."""
    value = Decimal(text)
    if (is_integer and "." in text) or (value == 0 and text.startswith("-")):
        return False
    tests = {
        "minimum": lambda bound: value >= bound,
        "exclusiveMinimum": lambda bound: value > bound,
        "maximum": lambda bound: value <= bound,
        "exclusiveMaximum": lambda bound: value < bound,
    }
    return all(tests[key](Decimal(bound)) for key, bound in schema.items())


def matches(matcher: llguidance.LLMatcher, text: str) -> bool:
    """Whether the whole text is let through; the matcher stays where it is."""
    copy = matcher.deep_copy()
    ids = LETTERS.encode(text).ids
    return copy.try_consume_tokens(ids) == len(ids) and copy.is_accepting()


def neighbours(text: str) -> list[str]:
    """The number itself, spelt in other ways too, and numbers right beside it."""
    with localcontext() as context:
        context.prec = 80
        near = [format(Decimal(text) + step, "f") for step in map(Decimal, ("1", "-1", "1e-24", "-1e-24", "10"))]
    return [text, f"{text}0" if "." in text else f"{text}.0", f"{text}1" if "." in text else f"{text}.1", *near]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    bounds=st.tuples(NUMBERS, NUMBERS),
    keys=st.tuples(st.sampled_from((*LOWER, "")), st.sampled_from((*UPPER, ""))),
    others=st.lists(NUMBERS, max_size=6),
    is_integer=st.booleans(),
)
def test_a_text_matches_where_its_number_lies_between_the_bounds(
    bounds: tuple[str, str], keys: tuple[str, str], others: list[str], is_integer: bool
) -> None:
    low, high = sorted(bounds, key=Decimal)
    schema = {key: bound for key, bound in zip(keys, (low, high), strict=True) if key}
    numbers = number_range({key: parse_json(bound) for key, bound in schema.items()}, is_integer=is_integer)
    assert numbers is not None
    lines = range_terminals("NUMBER", numbers)
    matcher = JUDGE.matcher({}, Grammar("\n".join(["start: NUMBER", *lines]))) if lines else None
    for text in (*others, *neighbours(low), *neighbours(high), "0", "-0", "-0.0", "00", "1e5"):
        is_number = text not in ("00", "1e5")
        wanted = is_number and is_inside(text, schema, is_integer=is_integer)
        assert (matcher is not None and matches(matcher, text)) == wanted, (schema, is_integer, text)


def test_bounds_of_many_digits_are_not_rounded() -> None:
    """Decimal's own minus rounds to 28 digits."""
    low = "-100000000000000.00000000000001"
    judge = SchemaJudge(f'{{"type":"number","minimum":{low},"maximum":0}}')
    assert judge.takes(low)
    assert not judge.takes(f"{low}1")


def test_the_largest_double_is_a_bound() -> None:
    judge = SchemaJudge('{"type":"number","minimum":0,"maximum":1.7976931348623157e308}')
    largest = "17976931348623157" + "0" * 292
    assert judge.takes(largest)
    assert judge.takes("0.5")
    assert not judge.takes(largest[:-1] + "1")
    assert not judge.takes("-1")
    assert not judge.rules.weakened


def test_plain_numbers_are_those_that_doubles_hold() -> None:
    for text in ("0", "9007199254740991", "-5", "0.1", "1.50", "123456.789", "1e3"):
        assert is_plain(parse_json(text)), text
    for text in ("9007199254740993", "0.12345678901234567", "1e30", "1e-20", "-1e400"):
        assert not is_plain(parse_json(text)), text


def test_decimals_are_multiples_as_decimals() -> None:
    for step, inside, outside in (
        ("0.01", ("0.33", "7", "12.5"), ("0.335",)),
        ("0.1", ("0.3", "1.1"), ("0.35",)),
        ("0.007", ("0.049",), ("0.05",)),
        ("0.00025", ("0.00075", "1"), ("0.0003",)),
        ("2.5e-5", ("0.000075",), ("0.00008",)),
        ("12.5", ("25", "37.5"), ("30",)),
        ("1e-20", ("0.00000000000000000003", "1.5"), ("0.000000000000000000005",)),
    ):
        judge = SchemaJudge(f'{{"type":"number","multipleOf":{step}}}')
        assert not judge.rules.weakened, step
        for text in inside:
            assert Decimal(text) % Decimal(step) == 0
            assert judge.takes(text), (step, text)
        for text in outside:
            assert Decimal(text) % Decimal(step) != 0
            assert not judge.takes(text), (step, text)


STEPS = ("0.01", "0.1", "0.05", "0.3", "0.07", "0.25", "1.5")
RANGES = (("0.07", "0.07"), ("0.3", "0.3"), ("0.29", "0.31"), ("-0.3", "-0.07"), ("0.6", "0.9"), ("4.35", "4.4"))


@pytest.mark.parametrize("step", STEPS)
def test_multiples_between_bounds_are_counted_in_decimals(step: str) -> None:
    for low, high in RANGES:
        for lower, upper in (("minimum", "maximum"), ("exclusiveMinimum", "maximum"), ("minimum", "exclusiveMaximum")):
            bounds = {lower: low, upper: high}
            schema = f'{{"type":"number","multipleOf":{step},"{lower}":{low},"{upper}":{high}}}'
            numbers = (low, high, "0.1", "0.3", "-0.1", "0.75", "4.4", "0.08")
            inside = {
                text
                for text in numbers
                if Fraction(text) % Fraction(step) == 0 and is_inside(text, bounds, is_integer=False)
            }
            try:
                judge = SchemaJudge(schema)
                taken = {text for text in numbers if judge.takes(text)}
            except (BadSchema, AssertionError):  # nothing matches
                taken = set()
            assert taken == inside, schema


def test_constants_beside_a_step_are_divided_as_decimals() -> None:
    for schema, inside, outside in (
        ('{"enum":[0.07,0.075],"multipleOf":0.01}', "0.07", "0.075"),
        ('{"const":0.3,"multipleOf":0.1}', "0.3", "0.2"),
        ('{"allOf":[{"enum":["a",0.7,0.75]},{"multipleOf":0.1}]}', "0.7", "0.75"),
    ):
        judge = SchemaJudge(schema)
        assert judge.takes(inside), schema
        assert not judge.takes(outside), schema


def test_steps_of_long_ranges_that_the_library_would_round_are_left_to_the_check() -> None:
    judge = SchemaJudge('{"type":"number","multipleOf":0.05,"minimum":0.3,"maximum":90000}')
    assert judge.rules.weakened == {"multipleOf"}
    assert judge.comes_out("0.3")
    assert not judge.comes_out("0.31")


def test_steps_that_the_library_would_round_or_count_for_ever_are_none() -> None:
    assert library_step(parse_json("99999989")) is None
    assert library_step(parse_json("1.234567890123")) is None
    step = library_step(parse_json("0.007"))
    assert step is not None
    assert abs(decimal_of(step) - Decimal("0.007")) < Decimal("1e-15")
