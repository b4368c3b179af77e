"""Which objects are closed, which keywords the grammar holds, and that a verdict does not depend on the spelling."""

import json
import time
from typing import Any

import pytest
from textmill_router.grammar.schema.normal_form import normal_schema
from textmill_router.grammar.schema.schema_reader import BadSchema

from tests.fakes.schema_judge import SchemaJudge

A = {"type": "integer"}
B = {"type": "string"}
AB = {"properties": {"a": A, "b": B}}

CLOSED: dict[str, tuple[Any, list[str], list[str]]] = {
    "properties without a type mean an object": (AB, ['{"a":1}', "{}"], ['{"c":1}', "1", '"x"', "[]"]),
    "required without a type means an object": ({"required": ["z"]}, ['{"z":[1]}'], ["{}", "5", '{"z":1,"y":2}']),
    "an empty list of properties": ({"type": "object", "properties": {}}, ["{}"], ['{"a":1}']),
    "an object that names no key is free": ({"type": "object"}, ["{}", '{"a":{"b":[1]}}'], ["1"]),
    "additionalProperties opens": ({**AB, "additionalProperties": True}, ['{"a":1,"c":[null]}'], ['{"a":"x"}']),
    "a schema of further keys": ({**AB, "additionalProperties": A}, ['{"c":1}'], ['{"c":"x"}']),
    "patterns are names": ({"patternProperties": {"^x": A}, "type": "object"}, ['{"xa":1}'], ['{"a":1}', '{"xa":"b"}']),
    "inner objects": ({"properties": {"o": AB}}, ['{"o":{"a":1}}'], ['{"o":{"c":1}}', '{"o":5}']),
    "items": ({"type": "array", "items": AB}, ['[{"a":1}]'], ['[{"c":1}]', "[5]"]),
    "all parts together": (
        {"allOf": [AB, {"properties": {"c": A}}]},
        ['{"a":1,"c":2}'],
        ['{"a":1,"d":2}', '{"c":"x"}'],
    ),
    "a part that opens": ({"allOf": [AB, {"additionalProperties": True}]}, ['{"d":1}'], ['{"a":"x"}']),
    "beside a reference": (
        {"$ref": "#/$defs/o", "properties": {"c": A}, "$defs": {"o": AB}},
        ['{"c":1,"a":2}'],
        ['{"d":1}', '{"c":1,"a":"x"}'],
    ),
    "alternatives are closed each by itself": (
        {"anyOf": [{"properties": {"a": A}, "required": ["a"]}, {"properties": {"b": B}, "required": ["b"]}]},
        ['{"a":1}', '{"b":"x"}'],
        ['{"a":1,"b":"x"}', '{"a":1,"c":2}', "{}"],
    ),
    "alternatives beside properties": (
        {"type": "object", **AB, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        ['{"a":1}', '{"b":"x"}', '{"a":1,"b":"x"}'],
        ["{}", '{"a":1,"c":2}'],
    ),
    "more keys demanded than named": ({**AB, "minProperties": 3}, ['{"a":1,"b":"x","c":2}'], []),
    "a circle": (
        {"properties": {"next": {"$ref": "#"}, "a": A}, "required": ["a"]},
        ['{"next":{"a":1},"a":2}'],
        ['{"next":{},"a":2}', '{"next":{"a":1,"x":1},"a":2}'],
    ),
}


@pytest.mark.parametrize("case", CLOSED)
def test_objects_have_the_keys_that_their_schema_names(case: str) -> None:
    schema, inside, outside = CLOSED[case]
    judge = SchemaJudge(json.dumps(schema))
    for text in inside:
        assert judge.takes(text), text
    for text in outside:
        assert not judge.takes(text), text


def test_open_objects_are_those_of_json_schema() -> None:
    judge = SchemaJudge(json.dumps({**AB, "required": ["a"]}), closes_objects=False)
    assert judge.takes('{"a":1,"c":[null]}')
    assert not judge.takes('{"c":1}')


HELD: dict[str, tuple[Any, list[str], list[str]]] = {
    "unknown format": ({"type": "string", "format": "binary"}, ['"x"'], ["1"]),
    "known format": ({"type": "string", "format": "date"}, ['"2026-11-29"'], ['"x"']),
    "unknown keyword": ({"type": "string", "x-order": 5, "nullable": True}, ['"x"'], ["null"]),
    "if with constants": (
        {
            "type": "object",
            "properties": {"k": {"enum": ["a", "b"]}, "x": A},
            "required": ["k"],
            "if": {"properties": {"k": {"const": "a"}}},
            "then": {"required": ["x"]},
        },
        ['{"k":"b"}', '{"k":"a","x":1}', '{"k":"b","x":1}'],
        ['{"k":"a"}'],
    ),
    "dependentRequired": (
        {**AB, "dependentRequired": {"a": ["b"]}},
        ["{}", '{"b":"x"}', '{"a":1,"b":"x"}'],
        ['{"a":1}'],
    ),
    "two dependencies": (
        {"type": "object", "properties": {"a": A, "b": A, "c": A}, "dependencies": {"a": ["b"], "b": ["c"]}},
        ["{}", '{"c":1}', '{"b":1,"c":1}', '{"a":1,"b":1,"c":1}'],
        ['{"a":1}', '{"a":1,"b":1}', '{"b":1}'],
    ),
    "names by a pattern": (
        {"type": "object", "propertyNames": {"pattern": "^x"}, "additionalProperties": A},
        ['{"xa":1}', "{}"],
        ['{"a":1}', '{"xa":"b"}'],
    ),
    "names from a list": (
        {"type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": A},
        ['{"x":1,"y":2}'],
        ['{"z":1}', '{"x":"b"}'],
    ),
    "not a type": ({"not": {"type": "string"}}, ["1", "{}", "null"], ['"a"']),
    "not a value": ({"enum": ["a", "b"], "not": {"const": "a"}}, ['"b"'], ['"a"']),
    "not a key": ({**AB, "not": {"required": ["a"]}}, ['{"b":"x"}'], ['{"a":1}']),
    "oneOf by a constant": (
        {
            "oneOf": [
                {"properties": {"t": {"const": "x"}, "v": A}, "required": ["t"]},
                {"properties": {"t": {"const": "y"}, "v": B}, "required": ["t"]},
            ]
        },
        ['{"t":"x","v":1}', '{"t":"y","v":"s"}'],
        ['{"t":"x","v":"s"}', '{"v":1}'],
    ),
    "oneOf by types": ({"oneOf": [A, B, {"type": "null"}]}, ["1", '"a"', "null"], ["true"]),
    "an alternative that nothing matches": (
        {
            "oneOf": [{"$ref": "#/$defs/never"}, {"$ref": "#/$defs/a"}],
            "$defs": {
                "never": {"type": "object", "required": ["x"], "additionalProperties": False},
                "a": {"type": "object", **AB},
            },
        },
        ['{"a":1}'],
        ['{"x":1}'],
    ),
    "oneOf by ranges": ({"oneOf": [{**A, "maximum": 1}, {**A, "minimum": 2}]}, ["1", "2"], ["1.5"]),
    "minProperties": ({**AB, "minProperties": 1}, ['{"a":1}', '{"b":"x"}'], ["{}"]),
    "maxProperties": ({**AB, "required": ["a"], "maxProperties": 1}, ['{"a":1}'], ['{"a":1,"b":"x"}', "{}"]),
    "a count of free keys": ({"type": "object", "minProperties": 2}, ['{"x":1,"y":2}'], ['{"x":1}']),
    "bounds of draft 4": ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, ["4"], ["3"]),
    "items of draft 7": (
        {"type": "array", "items": [A, B], "additionalItems": False},
        ['[1,"a"]'],
        ['[1,"a",2]', "[2,3]"],
    ),
    "patterns that exclude each other": (
        {"type": "object", "patternProperties": {"^a": A, "^b": B}},
        ['{"ax":1,"bx":"s"}'],
        ['{"ax":"s"}', '{"cx":1}'],
    ),
    "counts with a point": ({"type": "string", "maxLength": 2.0}, ['"ab"'], ['"abc"']),
}


@pytest.mark.parametrize("case", HELD)
def test_the_grammar_holds(case: str) -> None:
    schema, inside, outside = HELD[case]
    judge = SchemaJudge(json.dumps(schema))
    assert not judge.rules.weakened
    for text in inside:
        assert judge.takes(text), text
    for text in outside:
        assert not judge.takes(text), text


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": A}, "contains"),
        ({"not": {"pattern": "a"}}, "not"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({**AB, "minProperties": 2}, "minProperties"),
        ({**AB, "minProperties": 1, "additionalProperties": A}, "minProperties"),
        ({"allOf": [{"minProperties": 1}], **AB}, "minProperties"),
        ({**AB, "maxProperties": 1, "patternProperties": {"x": A}}, "maxProperties"),
        ({"if": {"minimum": 5}, "then": {"multipleOf": 2}}, "if"),
        ({"properties": {"a": A}, "propertyNames": {"maxLength": 3}}, "propertyNames"),
        ({"allOf": [{**AB, "additionalProperties": True}], "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"type": "object", "patternProperties": {"a": A, "b": B}}, "patternProperties"),
        ({"$dynamicRef": "#x", "$defs": {"x": {"$dynamicAnchor": "x"}}}, "$dynamicRef"),
    ],
)
def test_what_is_left_to_the_check_of_the_answer_is_named(schema: Any, keyword: str) -> None:
    assert normal_schema(schema, closes_objects=True).weakened == {keyword}


SPELLINGS: list[Any] = [
    {"properties": {"o": AB}, "required": ["o"]},
    {"required": ["o"], "properties": {"o": {"$ref": "#/$defs/x"}}, "$defs": {"x": AB}},
    {"$defs": {"x": {"$anchor": "here", **AB}}, "properties": {"o": {"$ref": "#here"}}, "required": ["o"]},
    {"$ref": "#/$defs/y", "$defs": {"y": {"properties": {"o": {"$ref": "#/$defs/x"}}, "required": ["o"]}, "x": AB}},
    {
        "$id": "https://example.com/root",
        "properties": {"o": {"$ref": "x"}},
        "required": ["o"],
        "$defs": {"x": {"$id": "https://example.com/x", **AB}},
    },
    {
        "$id": "https://example.com/base/root.json",
        "$ref": "nested/one.json",
        "$defs": {
            "one": {"$id": "nested/one.json", "$ref": "./two.json"},
            "two": {"$id": "nested/two.json", "properties": {"o": AB}, "required": ["o"]},
        },
    },
    {
        "properties": {"o": {"id": "/o", "properties": {"a": {"$ref": "#/definitions/a"}, "b": B}}},
        "required": ["o"],
        "definitions": {"a": A},
    },
    {"allOf": [{"required": ["o"]}, {"properties": {"o": AB}}]},
    {"anyOf": [{"properties": {"o": {"allOf": [AB]}}, "required": ["o"]}]},
]


@pytest.mark.parametrize("number", range(len(SPELLINGS)))
def test_a_verdict_does_not_depend_on_how_a_schema_is_written(number: int) -> None:
    judge = SchemaJudge(json.dumps(SPELLINGS[number]))
    assert not judge.rules.weakened
    for text in ('{"o":{"a":1,"b":"x"}}', '{"o":{}}'):
        assert judge.takes(text), text
    for text in ("{}", '{"o":{"a":"x"}}', '{"o":{"c":1}}', '{"o":{},"p":1}', "1"):
        assert not judge.takes(text), text


def test_siblings_of_a_reference_count_from_draft_2019_on() -> None:
    schema = {"$ref": "#/definitions/s", "maxLength": 1, "definitions": {"s": {"type": "string"}}}
    assert not SchemaJudge(json.dumps(schema)).takes('"ab"')
    assert SchemaJudge(json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **schema})).takes('"ab"')


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "http://127.0.0.1/x"}, "leads nowhere"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "leads nowhere"),
        ({"properties": 5}, "`properties` must be an object"),
        ({"anyOf": {}}, "`anyOf` must be an array"),
        ({"items": "x"}, '`items` must be a schema: an object or a boolean, found "x"'),
    ],
)
def test_what_is_no_schema_is_refused(schema: Any, words: str) -> None:
    with pytest.raises(BadSchema, match=words):
        normal_schema(schema, closes_objects=True)


def test_references_that_double_end_at_a_bound() -> None:
    definitions: dict[str, Any] = {"d0": {"type": "object"}}
    for level in range(1, 40):
        reference = {"$ref": f"#/$defs/d{level - 1}"}
        definitions[f"d{level}"] = {"allOf": [reference, reference]}
    with pytest.raises(BadSchema, match="spell out more than"):
        normal_schema({"$ref": "#/$defs/d39", "$defs": definitions}, closes_objects=True)


def test_alternatives_that_only_closing_tells_apart_are_left_to_the_check() -> None:
    """By JSON Schema both alternatives match an object with both keys."""
    schema = {"type": "object", "required": ["a"], "oneOf": [{"required": ["b"]}, {"properties": {"c": A}}]}
    judge = SchemaJudge(json.dumps(schema))
    assert judge.rules.weakened == {"oneOf"}
    assert judge.comes_out('{"c":2,"a":1}')
    assert not judge.comes_out('{"a":1,"b":2}')


def test_alternatives_of_which_none_lets_the_needed_keys_of_another_through_are_held_by_the_grammar() -> None:
    either = [{"properties": {"a": A}, "required": ["a"]}, {"properties": {"b": B}, "required": ["b"]}]
    judge = SchemaJudge(json.dumps({"oneOf": either}))
    assert not judge.rules.weakened
    assert judge.comes_out('{"a":1}')
    assert not judge.takes('{"a":1,"b":"x"}')


def test_bounds_of_two_parts_that_leave_out_zero_are_left_to_the_check() -> None:
    parts = [{"type": "number", "exclusiveMinimum": 0, "maximum": 2}, {"type": "number", "maximum": 0.5}]
    judge = SchemaJudge(json.dumps({"type": "object", "properties": {"n": {"allOf": parts}}}))
    assert "exclusiveMinimum" in judge.rules.weakened or not judge.takes('{"n":0}')
    assert judge.comes_out('{"n":0.25}')
    assert not judge.comes_out('{"n":0}')


def test_a_long_chain_of_parts_is_read() -> None:
    definitions: dict[str, Any] = {"d60": {"type": "object"}}
    for level in range(60):
        definitions[f"d{level}"] = {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}, {"properties": {f"k{level}": A}}]}
    judge = SchemaJudge(json.dumps({"$ref": "#/$defs/d0", "$defs": definitions}))
    assert judge.takes('{"k59":1,"k0":2}')
    assert not judge.takes('{"k59":"x"}')


def test_many_expressions_take_the_event_loop_a_moment_only() -> None:
    fields = {f"p{number}": {"type": "string", "pattern": f"^(?!{number})(a|b)+$"} for number in range(1500)}
    keys = {f"k{number}": {"patternProperties": {f"a{number}": A, f"b{number}": B}} for number in range(500)}
    begin_s = time.process_time()
    normal_schema({"properties": {**fields, **keys}}, closes_objects=True)
    assert time.process_time() - begin_s < 2
