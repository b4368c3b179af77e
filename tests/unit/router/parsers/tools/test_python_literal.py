"""Python literals in any pieces become the JSON text that `json.dumps` makes of their value."""

import ast
import json
import random
from typing import Any

import pytest
from textmill_router.parsers.tools.python_literal import LiteralReader


def read(pieces: list[str]) -> tuple[str, LiteralReader]:
    """Return the JSON text of a value behind which a bracket stands."""
    reader = LiteralReader()
    given = []
    for piece in pieces:
        reader.read(piece, 0)
        given.append(reader.take())
    return "".join(given), reader


LITERALS = [
    *("1", "-17", "+3", "0", "1_000", "2.5", "-0.25", ".5", "5.", "1e5", "1.5E-3", "-.5e+2", "0e5", "-0E0", "00.0e0"),
    *("True", "False", "None"),
    *("''", '""', "'a'", '"it\'s"', "'say \"x\"'", r"'it\'s'", '"東京 \N{GRINNING FACE}"'),
    *(r"'a\n\t\r\b\f\a\v\\b'", r"'\x41\u00e9\U0001F600'", r"'\101\0\18'", "'a\\\nb'", r"r'\d+\'x'", "R'a'"),
    *("'''a'b''c\n\"'''", '""""a"""', "'''" + r"\'''" + "'''", "u'x'"),
    *("[]", "{}", "[1, 'a', None]", "[1,]", "[[[]], {}]", "{'a': 1}", '{"a": [True, {"b": None}], \'c\': -1.5,}'),
    *("{2: 2, None: 3, True: 4}", "[ 1 ,2\n]", "{ 'a' : 'b' }"),
    *("()", "(1,)", "(1)", "('a')", "(1, 'b', [2])", "((1, 2), (3,))", "([1])", "({'a': (1)})", "[(), ()]"),
    *("'a' 'b'", "('a'\n\"b\" '')", "('a' 'b')", "{'a' 'b': 'c' 'd'}", "0x1F", "-0b101", "0o17"),
]
SETS = ["{1}", "{1, 'a', 2.5,}", "{'a' 'b'}", "[{1}, {2: {3}}]", "{(1, 2)}", "{None}"]


def listed(value: Any) -> Any:
    """Return the value with lists for sets, whose members are in no order."""
    match value:
        case set() | frozenset():
            return sorted((listed(member) for member in value), key=str)
        case list() | tuple():
            return [listed(entry) for entry in value]
        case dict():
            return {key: listed(entry) for key, entry in value.items()}
    return value


@pytest.mark.parametrize("literal", SETS)
def test_sets_become_lists(literal: str) -> None:
    whole, reader = read([literal + ")"])
    assert reader.is_done
    wanted = json.loads(json.dumps(listed(ast.literal_eval(literal))))
    found = json.loads(whole)
    assert (sorted(found, key=str) if literal.startswith("{") else found) == wanted
    assert read([*literal, ")"])[0] == whole


@pytest.mark.parametrize("literal", LITERALS)
def test_literal_becomes_its_json(literal: str) -> None:
    value: Any = ast.literal_eval(literal)
    whole, reader = read([literal + ")"])
    assert reader.is_done
    assert json.loads(whole) == json.loads(json.dumps(value))
    assert read([*literal, ")"])[0] == whole
    for cut in range(len(literal) + 1):
        assert read([literal[:cut], literal[cut:] + ")"])[0] == whole, cut
    for cut in range(len(literal)):
        begun, _ = read([literal[:cut]])
        assert whole.startswith(begun), cut


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("true", True),
        ("null", None),
        ("celsius", "celsius"),
        ("-", "-"),
        ("1.2.3", "1.2.3"),
        (r'"a\/b"', "a/b"),
        (r'"\ud83d\ude00"', "\N{GRINNING FACE}"),
        (r'"\ud83dx\ude00\ud83d"', "\ufffdx\ufffd\ufffd"),
        (r'"\x4"', r"\x4"),
        (r"'\d\z\%'", r"\d\z\%"),
        (r'"\U00110000"', "\ufffd"),
        ('"two\nlines"', "two\nlines"),
        ("007", 7),
        ("{1.50: a}", {"1.50": "a"}),
        ("{true: 1}", {"true": 1}),
    ],
)
def test_what_is_no_python_is_read_as_it_is_meant(literal: str, value: object) -> None:
    text, reader = read([literal + ")"])
    assert reader.is_done
    assert json.loads(text) == value
    assert read([*literal, ")"])[0] == text


@pytest.mark.parametrize(
    "literal",
    [
        "(1 2)",
        "(,)",
        "[1 2]",
        "{1: 2, 3}",
        "{1, 2: 3}",
        "{[]: 1}",
        "{[1]: 1}",
        "{'a' 1}",
        "[,]",
        "{'a':}",
        "*",
        "[)",
        "[f()]",
    ],
)
def test_what_is_no_literal_breaks(literal: str) -> None:
    _, reader = read([literal])
    assert reader.is_broken
    assert not reader.is_done


def test_value_ends_before_what_follows() -> None:
    for text, size in (("f(x)", 1), ("1, 2", 1), ("'a' 'b')", 7), ("[1] [2]", 3), ("''", 2), ("'' )", 3)):
        assert LiteralReader().read(text, 0) == size


def test_any_json_is_read_as_itself() -> None:
    source = random.Random(3)

    def value(depth: int) -> Any:
        kinds = [None, True, -1.5, 12, 'a"\\/\n\u2028\x00', "\N{GRINNING FACE}", 1e300]
        if depth:
            kinds += [[value(depth - 1) for _ in range(source.randint(0, 3))]]
            kinds += [{f"k{index}": value(depth - 1) for index in range(source.randint(0, 3))}]
        return source.choice(kinds)

    for _ in range(300):
        wanted = value(4)
        for text in (json.dumps(wanted), json.dumps(wanted, ensure_ascii=False, indent=1)):
            assert json.loads(read([*text, ")"])[0]) == wanted
