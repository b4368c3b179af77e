"""Numbers keep the text that the client wrote, from the body to the text of a grammar."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from textmill_router.exact_json import (
    DoubleKey,
    decimal_of,
    dump_json,
    encode_exactly,
    exact_decoder,
    is_whole,
    parse_json,
    parse_pairs,
    significant_digits,
)

LONG = '{"a":[0.12345678901234567890,1.50,-2e-30,9007199254740993,1e400],"b":{"1.5":"2.50"}}'


class Body(msgspec.Struct):
    inputs: float
    schema: Any = None


def test_numbers_are_written_as_they_were_read() -> None:
    assert dump_json(parse_json(LONG)) == LONG
    body = exact_decoder(Body).decode(f'{{"inputs":0.5,"schema":{LONG}}}')
    assert type(body.inputs) is float
    assert dump_json(body.schema) == LONG
    assert encode_exactly(body.schema) == LONG.encode()
    assert dump_json([1.5, True, None, 'x"']) == '[1.5,true,null,"x\\""]'
    assert dump_json(parse_json("1.50")) == "1.50"
    for bad in ("NaN", "[Infinity]", "{"):
        with pytest.raises(ValueError):
            parse_json(bad)


def test_floats_that_keep_their_text_are_floats() -> None:
    assert parse_json("[2.50]") == [2.5]
    assert isinstance(parse_json("2.50"), float)


def test_values_of_numbers_are_exact() -> None:
    assert decimal_of(parse_json("0.12345678901234567890")) == Decimal("0.12345678901234567890")
    assert decimal_of(9007199254740993) == 9007199254740993
    assert decimal_of(0.1) == Decimal("0.1")
    assert [is_whole(Decimal(text)) for text in ("1.0", "1e3", "0.5", "1.50", "-0.0")] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert significant_digits(Decimal("0.0120")) == ("12", -3)
    assert significant_digits(Decimal("-1200")) == ("12", 2)
    assert significant_digits(Decimal("0.00")) == ("", 0)


def test_keys_that_stand_twice_are_told() -> None:
    assert parse_pairs([("a", 1), ("b", 2)]) == {"a": 1, "b": 2}
    with pytest.raises(DoubleKey, match='"a" stands twice'):
        parse_pairs([("a", 1), ("b", 2), ("a", 1)])
