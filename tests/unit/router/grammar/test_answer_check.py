"""The checks of an answer that ended by itself, and the parts of a schema that are left to the grammar."""

import json
import socket
import time
from typing import Any

import pytest
from textmill_router.errors import GenerationBroke
from textmill_router.grammar.answer_check import check_answer
from textmill_router.grammar.request_forms import AskedGrammar, AskedKind

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def check(text: str, schema: Any) -> None:
    check_answer(text, AskedGrammar(AskedKind.JSON_SCHEMA, json.dumps(schema)))


def test_answer_must_be_json_of_the_schema() -> None:
    check('{"a": 5, "b": null}', SCHEMA)
    for text, words in (
        ("", "not JSON"),
        ('{"a": 5', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": "5"}', r"schema at \$\.a"),
        ("{}", "schema"),
        ("[]", "schema"),
    ):
        with pytest.raises(GenerationBroke, match=words):
            check(text, SCHEMA)
    check_answer("no JSON", AskedGrammar(AskedKind.REGEX, "a+"))


def test_patterns_are_left_to_the_grammar() -> None:
    """Python's own matcher would take years for these patterns."""
    endless = r"^(a+)+$"
    text = "a" * 40 + "b"
    begin_s = time.monotonic()
    check(json.dumps({"x": text}), {"type": "object", "properties": {"x": {"type": "string", "pattern": endless}}})
    check(json.dumps({text: 1}), {"type": "object", "patternProperties": {endless: {"type": "string"}}})
    assert time.monotonic() - begin_s < 10
    for schema in ({"type": "object", "properties": {"x": {"pattern": "b", "type": "string"}}}, SCHEMA):
        with pytest.raises(GenerationBroke):
            check(json.dumps({"x": 5}), schema)
    with pytest.raises(GenerationBroke):
        check("[]", {"type": "object", "patternProperties": {"a": {}}})


def test_references_are_not_fetched() -> None:
    local = {"$defs": {"i": {"type": "integer"}}, "type": "object", "properties": {"a": {"$ref": "#/$defs/i"}}}
    check('{"a": 1}', local)
    with pytest.raises(GenerationBroke):
        check('{"a": "1"}', local)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nobody.setblocking(False)
        port = nobody.getsockname()[1]
        socket.setdefaulttimeout(1)  # so that a fetch would end
        try:
            check('{"a": 1}', {"properties": {"a": {"$ref": f"http://127.0.0.1:{port}/schema"}}})
        finally:
            socket.setdefaulttimeout(None)
        with pytest.raises(BlockingIOError):
            nobody.accept()


def doubling(depth: int) -> dict[str, Any]:
    """Return a schema in which each definition refers twice to the next one, and the last takes no number."""
    definitions: dict[str, Any] = {"d0": {"type": "string"}}
    for level in range(1, depth + 1):
        reference = {"$ref": f"#/$defs/d{level - 1}"}
        definitions[f"d{level}"] = {"anyOf": [reference, reference]}
    either = {"anyOf": [{"$ref": f"#/$defs/d{depth}"}, {"type": "integer"}]}
    return {"type": "object", "properties": {"x": either}, "required": ["x"], "$defs": definitions}


def test_check_that_would_take_for_ever_is_left_to_the_grammar() -> None:
    check('{"x": 1}', doubling(4))
    with pytest.raises(GenerationBroke):
        check('{"x": null}', doubling(4))
    begin_s = time.monotonic()
    check('{"x": 1}', doubling(18))
    check(json.dumps(list(range(500))), {"items": {"enum": list(range(-5000, 500))}})
    assert time.monotonic() - begin_s < 5


def test_large_answers_are_checked_to_their_end() -> None:
    fields = {f"field{index}": {"type": "integer"} for index in range(10)}
    schema = {"items": {"type": "object", "properties": fields, "required": list(fields)}}
    rows: list[dict[str, Any]] = [dict.fromkeys(fields, 1) for _ in range(500)]
    check(json.dumps(rows), schema)
    rows[-1]["field9"] = "1"
    with pytest.raises(GenerationBroke, match=r"\$\[499\]\.field9"):
        check(json.dumps(rows), schema)


def test_what_only_the_grammar_can_read_is_left_to_it() -> None:
    check('{"a": 1}', {"type": "object", "$schema": []})
    check('{"a": 1}', {"type": "object", "$id": 5})
    tree = {"type": "object", "properties": {"a": {"$ref": "#"}}}
    check('{"a": ' * 300 + "{}" + "}" * 300, tree)
