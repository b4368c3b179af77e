"""Grammars in GBNF let through exactly the texts that a plain reader of the same grammar derives."""

import itertools
import re
from pathlib import Path

import llguidance
import pytest
from textmill_router.grammar.gbnf import BadGrammar, read_gbnf

from tests.fakes.byte_tokenizer import END_ID, write_byte_tokenizer


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> "llguidance.LLTokenizer":
    folder: Path = write_byte_tokenizer(tmp_path_factory.mktemp("gbnf"))
    return llguidance.LLTokenizer((folder / "tokenizer.json").read_text(), n_vocab=258, eos_token=[END_ID])


def matches(library: "llguidance.LLTokenizer", grammar: str, text: str) -> bool:
    found = read_gbnf(grammar, "gbnf")
    matcher = llguidance.LLMatcher(library, "\n".join([f"start: {found.start}", *found.rules]), log_level=0)
    assert not matcher.get_error(), matcher.get_error()
    ids = list(text.encode())
    if matcher.validate_tokens(ids) < len(ids):
        return False
    matcher.consume_tokens(ids)
    return bool(matcher.is_accepting())


# Each row has a grammar, and a regular expression of Python for the same texts over the letters a, b and c.
EQUAL: list[tuple[str, str]] = [
    ('root ::= "a"', "a"),
    ('root ::= "ab" "c" | [a] [b] [b]', "abc|abb"),
    ('root ::= as "a"\nas ::= [a-b]*', "[ab]*a"),  # a greedy cut of the text would never leave the last a
    ('root ::= ("a" | "ab") ("bc" | "c")', "(a|ab)(bc|c)"),
    ('root ::= "a"* "b"+ "c"?', "a*b+c?"),
    ('root ::= "a"{2} "b"{1,2} "c"{0,0} "a"{2,}', "aab{1,2}aa+"),
    ('root ::= ("a" "b"?){,2}', "(ab?){0,2}"),
    ("root ::= [^b]{2} .", "[^b]{2}."),
    ('root ::= "" | "a" root "b"', "|ab|aabb"),
    ('root ::= x | root "b"\nx ::= "a"', "ab*"),  # a rule that begins with itself
    ('root ::= (\n  # a comment\n  rule-1\n  | rule_2 )*\n\nrule-1 ::= "a"\nrule_2 ::= "b" "c"', "(a|bc)*"),
    ('root ::=\n  one |\n  two # end\none ::= "a"\ntwo ::= "b" "c"', "a|bc"),
    ('root ::= ("a"*)* "b"', "a*b"),
    (r'root ::= "\x61" "\u0062" "\U00000063"', "abc"),
    (r"root ::= [\x61-\x62] [-c]", "[ab]c"),
]


@pytest.mark.parametrize(("grammar", "expression"), EQUAL)
def test_texts_are_those_of_the_grammar(library: "llguidance.LLTokenizer", grammar: str, expression: str) -> None:
    for length in range(5):
        for letters in itertools.product("abc", repeat=length):
            text = "".join(letters)
            assert matches(library, grammar, text) == bool(re.fullmatch(expression, text)), text


@pytest.mark.parametrize(
    ("grammar", "inside", "outside"),
    [
        (r'root ::= "\"\\\n\t" [\]\[^-]', '"\\\n\t]', '"\\\n\tx'),
        ("root ::= .", "\n", ""),
        ("root ::= [^a]", "\n", "a"),
        ('root ::= "é" [à-ü] "😀" # "no"', "éë😀", "éz😀"),
        ('root ::= [/] "/"', "//", "/"),
        ('root ::= item ("," ws item)*\nws ::= " "?\nitem ::= [0-9]+', "1, 22,3", "1,,2"),
    ],
)
def test_signs_stand_for_themselves(library: "llguidance.LLTokenizer", grammar: str, inside: str, outside: str) -> None:
    assert matches(library, grammar, inside)
    assert not matches(library, grammar, outside)


# The grammar of JSON in the form in which llama.cpp publishes it.
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""


def test_published_grammar_of_json_is_read(library: "llguidance.LLTokenizer") -> None:
    for text in ('{"a": [1, -2.5e+3, "x\\u00e9\\n"], "é": {"b": null}}', "{}", '{"a":true}\n  '):
        assert matches(library, JSON, text), text
    for text in ("[1]", '{"a": 01}', '{"a": }', '{"a"'):
        assert not matches(library, JSON, text), text


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("", "no rule `root`"),
        ('start: "a"', "line 1: wanted the name of a rule and `::=`, found 'start: \"a\"'"),
        ('rule ::= "a"', "no rule `root`"),
        ("root ::= other", "line 1 names the rule `other`, which is not written"),
        ('root ::= "a"\nroot ::= "b"', "`root` is written twice"),
        ('root ::= "a', 'line 1: wanted `"`, found the end'),
        ("root ::= [a", "wanted `]`, found the end"),
        ("root ::= [b-a]", "'b' to 'a' does not rise"),
        ("root ::= []", "a character in the class"),
        ('root ::= ("a"', "wanted `)`, found the end"),
        ('root ::= "a")', "found ')'"),
        ('root ::= "a"{', "`{2}`"),
        ('root ::= "a"{3,2}', "that rise"),
        ('root ::= "a"{0,99999}', "at most 10000"),
        (r'root ::= "\q"', "one of the escapes"),
        (r'root ::= "\xg1"', "2 hexadecimal digits"),
        (r'root ::= "\ud800"', "the code of a character"),
        ("root ::= <think>", "found '<think>'"),
        ("root ::= " + "(" * 200 + '"a"' + ")" * 200, "more than 100 times"),
        ('root ::= "a"\n\n  &', "line 3: wanted"),
    ],
)
def test_what_is_no_grammar_is_refused_with_its_place(grammar: str, words: str) -> None:
    with pytest.raises(BadGrammar) as refused:
        read_gbnf(grammar, "gbnf")
    assert words in str(refused.value)


def test_a_long_grammar_takes_time_in_proportion_to_its_length() -> None:
    text = 'root ::= ("a" | b)* ' + " ".join(["b"] * 20_000) + '\nb ::= "x"\n' + "#\n" * 20_000
    assert len(read_gbnf(text, "gbnf").rules) == 2
