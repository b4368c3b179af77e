"""References in a circle beside other schemas: each pair of them has a definition of its own."""

import json
from typing import Any

import pytest
from textmill_router.grammar.schema.normal_form import normal_schema

from tests.fakes.schema_judge import SchemaJudge

INTEGER = {"type": "integer"}
TREE = {"type": "object", "properties": {"v": INTEGER, "next": {"$ref": "#/$defs/tree"}}, "additionalProperties": False}
SMALL = {"properties": {"v": {"maximum": 9}, "next": {"$ref": "#/$defs/small"}}, "additionalProperties": True}
EVEN = {"additionalProperties": {"$ref": "#/$defs/odd"}, "minProperties": 1}
ODD = {"additionalProperties": {"$ref": "#/$defs/even"}}

HELD: dict[str, tuple[Any, list[str], list[str]]] = {
    "two circles of one key": (
        {"allOf": [{"$ref": "#/$defs/tree"}, {"$ref": "#/$defs/small"}], "$defs": {"tree": TREE, "small": SMALL}},
        ['{"v":9,"next":{"v":9,"next":{}}}', "{}"],
        ['{"v":10}', '{"next":{"next":{"v":10}}}', '{"next":{"v":"s"}}', '{"w":1}', '{"next":{"w":1}}'],
    ),
    "circles of two and of three": (
        {
            "allOf": [{"$ref": "#/$defs/p0"}, {"$ref": "#/$defs/q0"}],
            "$defs": {
                "p0": {"type": "object", "properties": {"n": {"$ref": "#/$defs/p1"}}, "required": ["n"]},
                "p1": {"type": "object", "properties": {"n": {"$ref": "#/$defs/p0"}}},
                "q0": {"type": "object", "properties": {"n": {"$ref": "#/$defs/q1"}}},
                "q1": {"type": "object", "properties": {"n": {"$ref": "#/$defs/q2"}}, "required": ["n"]},
                "q2": {"type": "object", "properties": {"n": {"$ref": "#/$defs/q0"}}},
            },
        },
        ['{"n":{"n":{"n":{}}}}', '{"n":{"n":{"n":{"n":{"n":{"n":{"n":{"n":{"n":{}}}}}}}}}}'],
        ["{}", '{"n":{}}', '{"n":{"n":{}}}', '{"n":{"n":{"n":{"n":{}}}}}'],
    ),
    "a circle beside itself": (
        {"allOf": [{"$ref": "#/$defs/tree"}, {"$ref": "#/$defs/tree"}], "$defs": {"tree": TREE}},
        ['{"v":1,"next":{"v":1}}'],
        ['{"next":{"v":"s"}}'],
    ),
    "items of a circle": (
        {
            "allOf": [{"$ref": "#/$defs/list"}, {"$ref": "#/$defs/short"}],
            "$defs": {
                "list": {"type": "array", "items": {"$ref": "#/$defs/list"}},
                "short": {"type": "array", "items": {"$ref": "#/$defs/short"}, "maxItems": 2},
            },
        },
        ["[[],[[]]]", "[]"],
        ["[[],[],[]]", "[[[],[],[]]]", "[1]"],
    ),
    "a key that a pattern names too": (
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {"basic": {"$ref": "#/$defs/node"}},
                    "patternProperties": {"^[a-z]*$": {"$ref": "#/$defs/node"}},
                }
            },
        },
        ['{"basic":{"a":{}}}'],
        ['{"basic":1}', '{"a":{"basic":[]}}'],
    ),
}


@pytest.mark.parametrize("case", HELD)
def test_the_grammar_holds(case: str) -> None:
    schema, inside, outside = HELD[case]
    judge = SchemaJudge(json.dumps(schema))
    assert not judge.rules.weakened
    for text in inside:
        assert judge.comes_out(text), text
    for text in outside:
        assert not judge.takes(text), text


def test_the_order_of_the_parts_does_not_matter() -> None:
    parts = [{"$ref": "#/$defs/tree"}, {"$ref": "#/$defs/small"}, {"required": ["v"]}]
    for order in (parts, parts[::-1], [parts[2], parts[0], parts[1]]):
        judge = SchemaJudge(json.dumps({"$defs": {"tree": TREE, "small": SMALL}, "allOf": order}))
        assert judge.comes_out('{"v":1,"next":{"v":2}}')
        assert not judge.takes('{"v":1,"next":{"v":20}}')
        assert not judge.takes('{"next":{"v":2}}')


def test_what_cannot_be_written_is_left_to_the_check() -> None:
    schema = {
        "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        "$defs": {
            "a": {"type": "object", "patternProperties": {"^n": {"$ref": "#/$defs/a"}, "^v$": INTEGER}},
            "b": {"type": "object", "patternProperties": {"^n": {"$ref": "#/$defs/b"}, "^v$": {"maximum": 9}}},
        },
    }
    judge = SchemaJudge(json.dumps(schema))
    assert "allOf" in judge.rules.weakened
    assert judge.comes_out('{"n1":{"v":9}}')
    for text in ('{"n1":{"v":10}}', '{"n1":{"v":"s"}}', '{"n1":{"n2":{"v":10}}}'):
        assert not judge.comes_out(text), text


def test_a_schema_without_circles_stays_as_it_is() -> None:
    schema = {"allOf": [{"$ref": "#/$defs/o"}, {"required": ["v"]}], "$defs": {"o": {"properties": {"v": INTEGER}}}}
    assert not normal_schema(schema, closes_objects=True).definitions


def test_many_circles_end() -> None:
    definitions = {
        f"d{index}": {
            "type": "object",
            "properties": {f"k{key}": {"$ref": f"#/$defs/d{(index * 7 + key) % 40}"} for key in range(6)},
        }
        for index in range(40)
    }
    schema = {"allOf": [{"$ref": f"#/$defs/d{index}"} for index in range(12)], "$defs": definitions}
    assert normal_schema(schema, closes_objects=True).root
