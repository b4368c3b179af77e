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


def test_patterns_are_tried_in_bounded_time() -> None:
    """Python would need ages for these."""
    endless = r"^(a+)+$"
    begin_s = time.process_time()
    for text, is_good in (("a" * 4000, True), ("a" * 40 + "b", False)):
        for value, schema in (
            ({"x": text}, {"type": "object", "properties": {"x": {"type": "string", "pattern": endless}}}),
            ({text: 1}, {"patternProperties": {endless: {"type": "integer"}}, "additionalProperties": False}),
        ):
            if is_good:
                check(json.dumps(value), schema)
            else:
                with pytest.raises(GenerationBroke):
                    check(json.dumps(value), schema)
    with pytest.raises(GenerationBroke):
        check('{"x": "b"}', {"properties": {"x": {"pattern": "(?=a)"}}})
    assert time.process_time() - begin_s < 10


def test_keys_that_match_a_pattern_obey_its_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"patternProperties": {"type": "integer"}, "ab": {"maximum": 9}},
        "patternProperties": {"^a": {"type": "integer"}, "b$": {"minimum": 5}},
        "additionalProperties": {"patternProperties": {"é": False}},
    }
    for good in ('{"ax": 1, "ab": 7, "patternProperties": 1}', '{"ab": 5}', '{"c": {"e": 1}}', '{"xb": "s"}'):
        check(good, schema)
    for bad in (
        '{"ax": "1"}',
        '{"ab": 4}',
        '{"ab": 10}',
        '{"xb": 4}',
        '{"c": {"xéx": 1}}',
        '{"patternProperties": ""}',
    ):
        with pytest.raises(GenerationBroke):
            check(bad, schema)
    unseen = {"patternProperties": {"^a": True}, "unevaluatedProperties": False}
    check('{"a": 1}', unseen)
    with pytest.raises(GenerationBroke):
        check('{"b": 1}', unseen)


def test_alternatives_by_pattern_are_told_apart() -> None:
    either = {"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "b$"}]}
    for good in ('"ax"', '"xb"'):
        check(good, either)
    for bad in ('"ab"', '"x"'):
        with pytest.raises(GenerationBroke):
            check(bad, either)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ('{"const":9007199254740993}', "9007199254740993", "9007199254740992"),
        ('{"const":9007199254740993}', "9007199254740993.0", "9007199254740992.0"),
        ('{"enum":[[0.12345678901234567890]]}', "[0.1234567890123456789]", "[0.12345678901234568]"),
        ('{"maximum":1e400}', "1e400", "1.1e400"),
        ('{"exclusiveMinimum":0.1}', "0.10000000000000000001", "0.1"),
        ('{"minimum":5,"exclusiveMinimum":true}', "6", "5"),  # draft 4, validation 5.1
        ('{"maximum":5,"exclusiveMaximum":true}', "4", "5"),
        ('{"maximum":5,"exclusiveMaximum":false}', "5", "6"),
        ('{"multipleOf":0.1}', "0.3", "0.35"),
        ('{"multipleOf":0.01}', "1e300", "0.005"),
        ('{"multipleOf":1e-20}', "0.00000000000000000003", "0.000000000000000000005"),
        ('{"type":"integer"}', "1e3", "1.5"),
        ('{"type":"integer"}', "5.0", "true"),
        ('{"uniqueItems":true}', "[1,2.0]", "[1,1.0]"),
    ],
)
def test_numbers_are_compared_as_decimals_of_any_length(schema: str, good: str, bad: str) -> None:
    """By JSON Schema, validation 6.2 and core 4.2.2, numbers have no bound and compare by value."""
    grammar = AskedGrammar(AskedKind.JSON_SCHEMA, schema)
    check_answer(good, grammar)
    with pytest.raises(GenerationBroke, match="schema"):
        check_answer(bad, grammar)


def test_numbers_of_any_size_take_no_time() -> None:
    begin_s = time.process_time()
    with pytest.raises(GenerationBroke):
        check_answer("1e999999999", AskedGrammar(AskedKind.JSON_SCHEMA, '{"multipleOf":3}'))
    check_answer("9" * 100_000, AskedGrammar(AskedKind.JSON_SCHEMA, '{"minimum":5}'))
    assert time.process_time() - begin_s < 2


def test_no_object_has_a_key_twice() -> None:
    check('{"a": 1, "b": {"a": 2}}', {})
    with pytest.raises(GenerationBroke, match='the key "a" stands twice'):
        check('{"b": {"a": 1, "a": 1}}', {"type": "object"})


def test_a_keyword_that_only_the_check_holds_is_not_passed_over() -> None:
    """Where the check has no end, an answer counts only if the grammar has held all of the schema."""
    values = json.dumps(list(range(500)))
    dear = {"items": {"enum": list(range(-5000, 500))}}
    check(values, dear)
    with pytest.raises(GenerationBroke, match="`uniqueItems` cannot be checked"):
        check(values, {"uniqueItems": True, **dear})


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
    begin_s = time.process_time()
    check('{"x": 1}', doubling(18))
    check(json.dumps(list(range(500))), {"items": {"enum": list(range(-5000, 500))}})
    assert time.process_time() - begin_s < 5


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


def test_numbers_with_exponents_of_any_length_are_checked() -> None:
    """Python's decimals have an exponent of 18 digits at most; JSON has no limit."""
    number = {"type": "number", "minimum": -3, "maximum": 10}
    huge = "9" * 30
    check(f"1e-{huge}", number)
    check(f"-0.5E-{huge}", number)
    check(f"0e{huge}", number)
    check(f"1e{huge}", {"type": "integer"})
    for text in (f"1e{huge}", f"1E+{huge}", f"-12.5e{huge}"):
        with pytest.raises(GenerationBroke, match="does not match the schema"):
            check(text, number)
    for kind in ({"multipleOf": 0.5}, {"const": 5}, {"enum": [1, 2]}, {"type": "string"}):
        with pytest.raises(GenerationBroke, match="does not match the schema"):
            check(f"1e{huge}", kind)


def test_a_panic_of_a_library_is_no_end_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library in Rust panics with an exception that is none of Python's where the stack ends inside that library."""
    panic = type("PanicException", (BaseException,), {})

    def check_and_panic(*_: Any) -> None:
        raise panic

    monkeypatch.setattr("textmill_router.grammar.answer_check._Checker.check", check_and_panic)
    check("[1]", {"type": "array"})
    with pytest.raises(GenerationBroke, match="`uniqueItems` cannot be checked"):
        check("[1]", {"type": "array", "uniqueItems": True})


@pytest.mark.parametrize("schema", [{"not": {"multipleOf": 0}}, {"contains": {"pattern": "*"}}])
def test_keywords_of_no_meaning_inside_others_are_no_fault_of_the_server(schema: Any) -> None:
    with pytest.raises(GenerationBroke, match="cannot be checked"):
        check('["a"]' if "contains" in schema else "5", schema)
