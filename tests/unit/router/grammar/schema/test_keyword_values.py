"""Values that a keyword cannot have are refused with the keyword's name, by JSON Schema's own schema."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from textmill_router.grammar.schema.normal_form import normal_schema
from textmill_router.grammar.schema.schema_reader import BadSchema

WRONG: list[dict[str, Any]] = [
    {"type": "any"},
    {"type": []},
    {"type": ["string", "text"]},
    {"enum": 5},
    {"minimum": "5"},
    {"multipleOf": 0},
    {"multipleOf": -2},
    {"multipleOf": "x"},
    {"pattern": 5},
    {"required": {"a": True}},
    {"required": True},
    {"required": ["a", 5]},
    {"uniqueItems": "yes"},
    {"minLength": -1},
    {"minLength": 1.5},
    {"maxItems": "many"},
    {"minContains": -1},
    {"properties": []},
    {"patternProperties": ["a"]},
    {"dependentRequired": 5},
    {"not": 5},
    {"if": 5},
    {"contains": 5},
    {"propertyNames": "a"},
    {"additionalProperties": "no"},
    {"unevaluatedItems": 5},
    {"unevaluatedProperties": 5},
    {"items": 5},
]


@pytest.mark.parametrize("schema", WRONG, ids=str)
def test_a_wrong_value_is_refused_with_its_keyword(schema: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        Draft202012Validator.check_schema(schema)
    [key] = schema
    with pytest.raises(BadSchema, match=f"`{key}` must be"):
        normal_schema({"type": "array", "prefixItems": [schema]}, closes_objects=True)


@pytest.mark.parametrize(
    "schema",
    [
        {"exclusiveMinimum": True, "minimum": 3},  # draft 4
        {"items": [{"type": "string"}], "additionalItems": False},  # draft 7
        {"dependencies": {"a": "b"}},  # draft 3
        {"minLength": 2.0, "format": 5, "title": 7},
    ],
    ids=str,
)
def test_values_of_other_drafts_are_taken(schema: dict[str, Any]) -> None:
    assert normal_schema(schema, closes_objects=True)
