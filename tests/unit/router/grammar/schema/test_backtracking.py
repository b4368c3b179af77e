"""Expressions that the engine of the grammar cannot read: read as ECMA-262 reads them, and never for long."""

import json
import time
from typing import Any

import pytest
from textmill_router.grammar.schema.backtracking import BacktrackingPattern, NoPattern, PatternTooDear
from textmill_router.grammar.schema.normal_form import normal_schema
from textmill_router.grammar.schema.patterns import Pattern, is_readable, pattern
from textmill_router.grammar.schema.schema_reader import BadSchema

from tests.fakes.schema_judge import SchemaJudge


@pytest.mark.parametrize(
    ("expression", "found", "not_found"),
    [
        (r"^(?!foo)[a-z]+$", ["bar", "fo"], ["foobar", "bar\n"]),  # `$` is the end of the text alone
        (r"^\w+(?=\d$)", ["a1"], ["é1", "a٣"]),  # letters and digits of ASCII
        (r"(?=a)[^\d]+$", ["ab"], ["a1"]),
        (r"(?<=\<)\w\>", ["<a>"], ["a>"]),
        (r"(?<c>[ab])\k<c>(?!x)", ["aa", "bb"], ["ab", "aax"]),
        (r"^(/?([a-z]*)($|/))*$", ["a/b", "/"], ["a/1"]),
    ],
)
def test_an_expression_means_what_ecma_262_says(expression: str, found: list[str], not_found: list[str]) -> None:
    assert not is_readable(expression)
    for text in found:
        assert pattern(expression).is_in(text), text
    for text in not_found:
        assert not pattern(expression).is_in(text), text


@pytest.mark.parametrize("expression", [r"^a{1,3}\d+$", "[A-Z_]+", r"^[\w.-]+@[a-z]+\.[a-z]{2,}$", "^(a|b)*$", "a.b"])
def test_the_engine_of_the_grammar_reads_the_rest(expression: str) -> None:
    assert is_readable(expression)
    assert isinstance(pattern(expression), Pattern)


def test_a_trial_ends() -> None:
    endless = BacktrackingPattern(r"^(?=a)(a|a)+$")
    begin_s = time.process_time()
    with pytest.raises(PatternTooDear):
        endless.is_in("a" * 60 + "b")
    assert time.process_time() - begin_s < 2


@pytest.mark.parametrize("expression", ["*", "(?=", "a" * 3_000 + "(?=b)"])
def test_what_is_no_expression_is_refused_with_its_keyword(expression: str) -> None:
    with pytest.raises(NoPattern):
        BacktrackingPattern(expression)
    for schema in ({"pattern": expression}, {"patternProperties": {expression: True}}):
        with pytest.raises(BadSchema, match="no regular expression"):
            normal_schema(schema, closes_objects=True)


NO_X = r"^(?!x)[a-z]*$"
CASES: list[tuple[str, Any, list[str], list[str]]] = [
    ("pattern", {"type": "string", "pattern": NO_X}, ['"ab"'], ['"xb"', "5"]),
    (
        "patternProperties",
        {
            "type": "object",
            "patternProperties": {NO_X: {"type": "integer"}},
            "properties": {"x": {"type": "string"}},
            "additionalProperties": False,
        },
        ['{"x":"s","a":1}', "{}"],
        ['{"a":"s"}', '{"x":1}', '{"xa":1}'],
    ),
    (
        "patternProperties",
        {"type": "object", "propertyNames": {"pattern": NO_X}, "additionalProperties": {"type": "integer"}},
        ['{"a":1}'],
        ['{"xa":1}', '{"a":"s"}'],
    ),
    (
        "patternProperties",
        {"patternProperties": {NO_X: {"maximum": 3}, "^a": {"type": "integer"}}, "additionalProperties": False},
        ['{"a":1,"b":"s"}'],
        ['{"a":4}', '{"a":"s"}', '{"xb":1}'],
    ),
]


@pytest.mark.parametrize(("keyword", "schema", "good", "bad"), CASES)
def test_the_check_holds_what_the_grammar_cannot_read(
    keyword: str, schema: Any, good: list[str], bad: list[str]
) -> None:
    judge = SchemaJudge(json.dumps(schema))
    assert judge.rules.weakened == {keyword}
    for text in good:
        assert judge.comes_out(text), text
    for text in bad:
        assert not judge.comes_out(text), text
