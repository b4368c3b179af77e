"""Patterns of keys that overlap, in one schema and in several that hold together."""

import itertools
import json
from typing import Any

import pytest

from tests.fakes.schema_judge import SchemaJudge

INTEGER = {"type": "integer"}
CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "in one schema": (
        {"patternProperties": {"a": INTEGER, "b": {"maximum": 5}}},
        ['{"ab":5,"ax":9}', '{"b":"s"}'],
        ['{"ab":6}', '{"a":"s"}', '{"c":1}'],
    ),
    "in two parts": (
        {"allOf": [{"patternProperties": {"a": INTEGER}}, {"patternProperties": {"b": {"maximum": 5}}}]},
        ['{"ab":5,"ax":9}', '{"b":"s"}'],
        ['{"ab":6}', '{"a":"s"}', '{"c":1}'],
    ),
    "beside properties of a closed part": (
        {
            "allOf": [
                {"patternProperties": {"^b": INTEGER}, "properties": {"a1": {"type": "string"}}},
                {"patternProperties": {"^a|^b": {"maxLength": 3}}},
            ]
        },
        ['{"a1":"abc"}', '{"b":1}', '{"a2":"x"}'],
        ['{"a1":5}', '{"a1":"abcd"}', '{"b":"x"}', '{"c":1}'],
    ),
    "inside a value of two parts": (
        {
            "allOf": [
                {"type": "object", "properties": {"o": {"type": "object", "patternProperties": {"^..$": INTEGER}}}},
                {"type": "object", "properties": {"o": {"patternProperties": {"b": {"maximum": 5}}}}},
            ]
        },
        ['{"o":{"ab":5}}', '{"o":{"ax":7}}'],
        ['{"o":{"ab":6}}', '{"o":{"ax":"s"}}'],
    ),
    "in an alternative": (
        {
            "type": "object",
            "patternProperties": {"^a": INTEGER},
            "anyOf": [{"patternProperties": {"x$": {"minimum": 5}}}, {"required": ["q"]}],
        },
        ['{"ax":5}', '{"a":1}'],
        ['{"ax":4}', '{"a":"s"}'],
    ),
    "more than the engine compares": (
        {"type": "object", "patternProperties": {f"k{index}": {"minimum": index} for index in range(30)}},
        ['{"k2":2}', '{"k29":"s"}'],
        ['{"k2":1}', '{"k29":28}', '{"z":1}'],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_grammar_and_check_hold_them_together(case: str) -> None:
    schema, good, bad = CASES[case]
    judge = SchemaJudge(json.dumps(schema))
    assert "patternProperties" in judge.rules.weakened
    for text in good:
        assert judge.comes_out(text), text
    for text in bad:
        assert not judge.comes_out(text), text


def test_patterns_that_exclude_each_other_are_held_by_the_grammar() -> None:
    parts = [{"patternProperties": {"^a": INTEGER}}, {"patternProperties": {"^b": {"type": "string"}}}]
    judge = SchemaJudge(json.dumps({"type": "object", "allOf": parts}))
    assert not judge.rules.weakened
    assert judge.takes('{"a":1,"b":"s"}')
    assert not judge.takes('{"a":"s"}')


def test_the_order_of_keywords_does_not_matter() -> None:
    schema = {
        "type": "object",
        "patternProperties": {"^[xy]$": {"type": "string"}},
        "additionalProperties": False,
        "required": ["n"],
        "anyOf": [{"required": ["x"]}, {"required": ["y"]}],
        "properties": {"n": INTEGER},
    }
    keys = ["patternProperties", "additionalProperties", "anyOf", "properties"]
    for order in itertools.permutations(keys):
        judge = SchemaJudge(json.dumps({key: schema[key] for key in ("type", *order, "required")}))
        for text in ('{"n":1,"x":"s"}', '{"n":1,"y":"s"}'):
            assert judge.takes(text), (order, text)
        for text in ('{"n":1}', '{"n":1,"x":1}', '{"n":1,"x":"s","z":1}'):
            assert not judge.takes(text), (order, text)
