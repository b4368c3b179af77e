"""`unevaluatedProperties: false` closes an object, wherever the keys are named (2020-12 core, section 11.3)."""

import json
from typing import Any

import pytest

from tests.fakes.schema_judge import SchemaJudge

A = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
B = {"properties": {"b": {"const": 2}}, "required": ["b"]}

# A schema, the texts that come out, and the texts that do not.
CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "a reference": (
        {"$defs": {"d": A}, "$ref": "#/$defs/d", "unevaluatedProperties": False},
        ['{"a":1}'],
        ['{"a":1,"b":2}'],
    ),
    "a part": (
        {"allOf": [{key: A[key] for key in ("properties", "required")}], **B, "unevaluatedProperties": False},
        ['{"b":2,"a":1}'],
        ['{"b":2,"a":1,"c":3}', '{"b":2}'],
    ),
    "alternatives": (
        {"anyOf": [A, {"properties": {"c": {"const": 3}}, "required": ["c"]}], **B, "unevaluatedProperties": False},
        ['{"c":3,"b":2}', '{"a":1,"b":2}'],
        ['{"b":2}', '{"c":3,"b":2,"d":4}'],
    ),
    "inside a part, which sees its own keys alone": (
        {"allOf": [{**A, "unevaluatedProperties": False}], "properties": {"b": {"const": 2}}},
        ['{"a":1}'],
        ['{"a":1,"b":2}'],
    ),
    "beside a part that opens": (
        {"allOf": [{**A, "additionalProperties": True}], "unevaluatedProperties": False},
        ['{"a":1}', '{"a":1,"b":2}'],
        ['{"b":2}'],
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("closes_objects", [True, False])
def test_keys_that_nothing_evaluates_do_not_come_out(case: str, closes_objects: bool) -> None:
    schema, taken, refused = CASES[case]
    judge = SchemaJudge(json.dumps(schema), closes_objects=closes_objects)
    assert [judge.comes_out(text) for text in taken] == [True] * len(taken)
    assert [judge.comes_out(text) for text in refused] == [False] * len(refused)


@pytest.mark.parametrize("case", ["a reference", "a part"])
def test_the_grammar_alone_closes_what_is_closed_anyway(case: str) -> None:
    schema, taken, refused = CASES[case]
    judge = SchemaJudge(json.dumps(schema))
    assert all(judge.takes(text) for text in taken)
    assert not any(judge.takes(text) for text in refused)
    assert "unevaluatedProperties" not in judge.rules.weakened
