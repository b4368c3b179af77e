"""The types that a schema allows a parameter, and the schemas that can be written parameter by parameter."""

import time
from typing import Any

import pytest
from textmill_router.errors import ValidationFailed
from textmill_router.parsers.tools.parameters import ALL_TYPES, Parameters

NUMBERS = {"number", "integer"}
DEFINITIONS = {"text": {"type": "string"}, "loop": {"$ref": "#/$defs/loop"}, "a/b": {"const": None}}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": "number"}, NUMBERS),
        ({"type": ["integer", "null"]}, {"integer", "null"}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"string", "null"}),
        ({"oneOf": [{"type": "array"}, {"type": "object"}], "type": "array"}, {"array"}),
        ({"allOf": [{"type": ["string", "null"]}, {"type": ["null", "integer"]}]}, {"null"}),
        ({"enum": ["a", 1, None, 2.5, True, [], {}]}, ALL_TYPES),
        ({"enum": ["a", "b"], "type": ["string", "null"]}, {"string"}),
        ({"const": False}, {"boolean"}),
        ({"$ref": "#/$defs/text"}, {"string"}),
        ({"$ref": "#/$defs/a~1b"}, {"null"}),
        ({"$ref": "#/$defs/loop"}, ALL_TYPES),
        ({"$ref": "#/$defs/nothing"}, ALL_TYPES),
        ({"$ref": "http://elsewhere/x"}, ALL_TYPES),
        ({}, ALL_TYPES),
        (True, ALL_TYPES),
        ({"type": 5, "enum": 5, "anyOf": 5}, ALL_TYPES),
    ],
)
def test_types_of_a_parameter(schema: Any, types: set[str]) -> None:
    parameters = Parameters({"type": "object", "properties": {"a": schema}, "$defs": DEFINITIONS})
    assert parameters.types_of("a") == types


@pytest.mark.parametrize(
    ("others", "types"),
    [({}, {"string"}), ({"additionalProperties": {"type": "integer"}}, {"integer"}), ({"properties": 5}, {"string"})],
)
def test_parameter_without_an_entry_is_a_string_or_as_the_schema_says_of_others(others: Any, types: set[str]) -> None:
    assert Parameters(others).types_of("other") == types
    assert Parameters(None).types_of("other") == {"string"}


def test_references_that_branch_without_end_are_given_up() -> None:
    reference = {"$ref": "#/$defs/d"}
    schema = {"properties": {"a": reference}, "$defs": {"d": {"anyOf": [reference] * 100}}}
    begin_s = time.process_time()
    assert Parameters(schema).types_of("a") == ALL_TYPES
    assert time.process_time() - begin_s < 1


def test_declared_parameters_stand_in_order_and_alone() -> None:
    schema = {
        "type": "object",
        "properties": {"b": {"$ref": "#/$defs/text"}, "a": {"type": "integer"}},
        "required": ["a", "c"],
        "$defs": DEFINITIONS,
    }
    declared = Parameters(schema).declared("f")
    assert [(entry.name, entry.is_required) for entry in declared] == [("b", False), ("a", True), ("c", True)]
    assert declared[0].schema == {"$ref": "#/$defs/text", "$defs": DEFINITIONS}
    assert [entry.schema for entry in declared[1:]] == [{"type": "integer"}, {"type": "string"}]


def test_rules_between_parameters_are_refused() -> None:
    with pytest.raises(ValidationFailed, match=r"`f`.*`dependentRequired`"):
        Parameters({"dependentRequired": {"a": ["b"]}}).declared("f")


@pytest.mark.parametrize(
    ("schema", "rules"),
    [
        ({"type": "string", "maxLength": 5}, {"type": "string", "maxLength": 5}),
        ({"anyOf": [{"type": "string", "pattern": "a"}, {"type": "null"}]}, {"type": "string", "pattern": "a"}),
        ({"allOf": [{"$ref": "#/$defs/text"}], "minLength": 2}, {"type": "string", "minLength": 2}),
        ({"anyOf": [{"type": "string", "pattern": "a"}, {"type": "string", "pattern": "b"}]}, None),
        ({"allOf": [{"pattern": "a"}], "pattern": "b"}, None),
    ],
)
def test_rules_for_a_string_are_those_of_its_one_alternative(schema: Any, rules: Any) -> None:
    parameters = Parameters({"properties": {"a": schema}, "$defs": DEFINITIONS})
    assert parameters.string_rules("a") == rules
