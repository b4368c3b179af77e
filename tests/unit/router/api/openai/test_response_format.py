"""The meaning of each shape of `response_format`."""

from typing import Any

import pytest
from textmill_router.api.openai.response_format import grammar_of
from textmill_router.errors import ValidationFailed
from textmill_router.grammar.request_forms import ANY_OBJECT

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object"},
        {"type": "json_object", "value": None},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": None, "strict": None}},
    ],
)
def test_format_without_a_schema_is_any_object(form: dict[str, Any]) -> None:
    assert grammar_of(form) == ANY_OBJECT


@pytest.mark.parametrize("form", [None, {"type": "text"}, {"type": "text", "value": None}])
def test_text_is_free(form: dict[str, Any] | None) -> None:
    assert grammar_of(form) is None


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": [1]}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": 5}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": SCHEMA}, "response_format.json_schema.schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": "yes"}},
            "response_format.json_schema.strict",
        ),
        ({"type": "regex", "value": 5}, "response_format.value"),
        ({"type": "text", "value": SCHEMA}, "response_format.value"),
        ({"type": "text", "schema": SCHEMA}, "response_format.schema"),
    ],
)
def test_other_shapes_are_refused_with_their_field(form: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        grammar_of(form)
    assert refused.value.field == field
    assert f"`{field}`" in str(refused.value)
