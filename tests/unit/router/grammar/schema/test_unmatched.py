"""Schemas that nothing matches: left out where something else can match, whether a reference leads there or not."""

import json
from typing import Any

import pytest
from textmill_router.grammar.schema.normal_form import normal_schema
from textmill_router.grammar.schema.schema_reader import BadSchema

from tests.fakes.schema_judge import SchemaJudge

NOTHING: dict[str, Any] = {
    "no type": {"not": {"type": ["array", "boolean", "integer", "number", "null", "object", "string"]}},
    "an enum of another type": {"type": "string", "enum": [1, None]},
    "two types": {"allOf": [{"type": "string"}, {"type": "array"}]},
    "bounds": {"type": "integer", "minimum": 3, "maximum": 2},
    "open bounds": {"type": "number", "exclusiveMinimum": 3, "maximum": 3},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 2},
    "a key that is needed and forbidden": {"type": "object", "required": ["k"], "properties": {"k": False}},
    "a key that nothing fits": {"type": "object", "required": ["k"], "properties": {"k": {"$ref": "#/$defs/never"}}},
    "a pattern that is too long": {"type": "string", "pattern": "^abc", "maxLength": 2},
    "a key that neither name nor pattern allows": {
        "type": "object",
        "required": ["c"],
        "patternProperties": {"^[ab]": True},
        "additionalProperties": False,
    },
    "a key whose name and pattern exclude each other": {
        "type": "object",
        "required": ["k"],
        "properties": {"k": {"type": "object"}},
        "patternProperties": {"^k": {"type": "string"}},
    },
    "an item that nothing fits": {"type": "array", "items": {"type": "string", "enum": [1]}, "minItems": 1},
    "no multiple between the bounds": {"type": "integer", "minimum": 4, "maximum": 5, "multipleOf": 3},
    "a constant beyond the bound": {"type": "integer", "enum": [3, 4], "maximum": 2},
    "alternatives of which none fits": {"type": "string", "anyOf": [{"type": "null"}, {"enum": [5]}]},
}


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("is_reference", [False, True])
def test_a_property_and_an_alternative_that_nothing_matches_are_left_out(case: str, is_reference: bool) -> None:
    never = {"$ref": "#/$defs/case"} if is_reference else NOTHING[case]
    definitions = {"case": NOTHING[case], "never": False}
    properties = {"a": never, "b": {"type": "integer"}}
    judge = SchemaJudge(json.dumps({"type": "object", "properties": properties, "$defs": definitions}))
    assert judge.takes('{"b":1}')
    assert not judge.takes('{"a":1,"b":1}')
    either = SchemaJudge(json.dumps({"anyOf": [never, {"const": "x"}], "$defs": definitions}))
    assert either.takes('"x"')
    items = SchemaJudge(json.dumps({"type": "array", "items": never, "$defs": definitions}))
    assert items.takes("[]")
    assert not items.takes("[1]")


@pytest.mark.parametrize("case", NOTHING)
def test_the_same_holds_beside_numbers_that_are_written_digit_by_digit(case: str) -> None:
    """The rules for such numbers are this engine's own, around the schemas that the library writes."""
    exact = {"const": 12345678901234567890}
    definitions = {"case": NOTHING[case], "never": False}
    properties = {"a": NOTHING[case], "b": exact, "c": {"type": "array", "prefixItems": [exact, NOTHING[case]]}}
    judge = SchemaJudge(json.dumps({"type": "object", "properties": properties, "$defs": definitions}))
    assert not judge.rules.weakened
    assert judge.takes('{"b":12345678901234567890,"c":[12345678901234567890]}')
    assert not judge.takes('{"a":1}')
    assert not judge.takes('{"c":[12345678901234567890,1]}')
    either = SchemaJudge(json.dumps({"anyOf": [NOTHING[case], exact], "$defs": definitions}))
    assert either.takes("12345678901234567890")


def test_what_something_matches_stays() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/a"}, "b": {"$ref": "#/$defs/b"}},
        "$defs": {
            "a": {"type": "integer", "minimum": 3, "maximum": 3},
            "b": {"type": ["string", "null"], "enum": [None]},
        },
    }
    assert SchemaJudge(json.dumps(schema)).takes('{"a":3,"b":null}')


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/s", "$defs": {"s": {"allOf": [{"type": "string"}, {"type": "null"}]}}},
        {"type": "string", "minLength": 10**30},
    ],
)
def test_a_schema_that_nothing_matches_is_refused(schema: Any) -> None:
    with pytest.raises(BadSchema, match=r"no text matches it|no answer has"):
        normal_schema(schema, closes_objects=True)


def test_counts_beyond_any_answer_bound_nothing() -> None:
    judge = SchemaJudge(
        json.dumps({"type": "array", "maxItems": 10**30, "items": {"type": "string", "maxLength": 1e300}})
    )
    assert judge.takes('["a"]')
    assert not judge.rules.weakened


def test_a_format_never_contradicts_the_pattern_beside_it() -> None:
    """By JSON Schema, validation 7.1, a format is an annotation."""
    judge = SchemaJudge(json.dumps({"type": "string", "format": "uri", "pattern": "^git@[a-z]+$"}))
    assert judge.takes('"git@abc"')
    both = SchemaJudge(json.dumps({"type": "string", "format": "date", "pattern": "^2026"}))
    assert both.takes('"2026-01-02"')
    assert not both.takes('"2026"')
