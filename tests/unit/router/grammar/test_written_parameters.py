"""The texts of grammars for formats that write each parameter by itself are read as calls that fit the schema."""

import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from textmill_router.errors import ValidationFailed
from textmill_router.grammar.tool_grammar import OutputForm, tool_grammar
from textmill_router.parsers.chat_parser import ChatParser
from textmill_router.parsers.tools import glm4, minimax, pythonic, qwen3_coder
from textmill_router.parsers.tools.tool_format import ToolFormat, ToolSpec

from tests.fakes.chat_outputs import parse_whole
from tests.fakes.grammar_judge import Judge

NUM_SAMPLES = 30
MAX_BYTES = 400
TAG_FORMATS = [qwen3_coder.QWEN3_CODER, glm4.GLM4, minimax.MINIMAX_M2]
FORMATS = [*TAG_FORMATS, pythonic.PYTHONIC]
each_format = pytest.mark.parametrize("tools", FORMATS, ids=lambda tools: tools.name)
each_tag_format = pytest.mark.parametrize("tools", TAG_FORMATS, ids=lambda tools: tools.name)
CLOSED = {"type": "object", "additionalProperties": False}
NAME = {"type": "string", "minLength": 2, "maxLength": 4}
SCHEMAS: dict[str, dict[str, Any]] = {
    "strings": {**CLOSED, "properties": {"a": {"type": "string"}, "b": NAME}, "required": ["a", "b"]},
    "left out": {**CLOSED, "properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": "null"}}},
    "left out first": {**CLOSED, "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["b"]},
    "numbers": {
        **CLOSED,
        "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 12}, "b": {"type": "number"}},
        "required": ["a", "b"],
    },
    "words": {**CLOSED, "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}, "required": ["a", "b"]},
    "choices": {
        **CLOSED,
        "properties": {"a": {"enum": ["x", "null", "y z"]}, "b": {"enum": ["x", None]}, "c": {"const": 5}},
        "required": ["a", "b", "c"],
    },
    "maybe text": {
        **CLOSED,
        "properties": {"a": {"type": ["string", "null"]}, "b": {"anyOf": [NAME, {"type": "null"}]}},
        "required": ["a", "b"],
    },
    "mixed": {**CLOSED, "properties": {"a": {"type": ["string", "integer"]}, "b": {}}, "required": ["a", "b"]},
    "nested": {
        **CLOSED,
        "properties": {
            "a": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
            "b": {"$ref": "#/$defs/point"},
        },
        "required": ["a", "b"],
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "boolean"}, "y": {"type": ["null", "integer"]}},
                "required": ["x", "y"],
                "additionalProperties": False,
            }
        },
    },
    "pattern": {
        **CLOSED,
        "properties": {"a": {"type": "string", "pattern": "^[ab]+$"}, "b": {"type": "string", "pattern": "c[0-9]"}},
        "required": ["a", "b"],
    },
    "const beside enum": {
        **CLOSED,
        "properties": {"a": {"type": "string", "enum": ["x", "y z"], "const": "y z"}, "b": {"const": "x"}},
        "required": ["a", "b"],
    },
    "none": CLOSED,
    "any": {"type": "object"},
}
# Pieces of such calls, with which the samples end, and with which they try to break out of a value.
SNIPPETS = [
    *("</arg_value>\n", "<arg_key>", "</tool_call>", "</invoke>\n", '<parameter name="', "y z"),
    *("\n</parameter>\n", "</parameter>", "</function>\n</tool_call>", "<parameter=", "\n", "<", ">"),
    *("null", "None", "true", "x", "ab", "c5", "5", "-1", '"', "\\", "'", "}", "]", ")]", ", ", "[", "{}"),
]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@each_format
@pytest.mark.parametrize("case", SCHEMAS)
def test_what_the_grammar_lets_through_is_read_as_a_call_that_fits_its_schema(
    judge: Judge, tools: ToolFormat, case: str
) -> None:
    schema = SCHEMAS[case]
    specs = [ToolSpec("act", schema, is_strict=True)]
    grammar = tool_grammar(specs, OutputForm(tools, {}), is_required=True, is_parallel=False)
    assert grammar is not None
    source = random.Random(case)
    num_read = 0
    for _ in range(NUM_SAMPLES):
        text = judge.sample(grammar, SNIPPETS, source, MAX_BYTES)
        if text is None:
            continue
        message = parse_whole(ChatParser(tools, None, specs), text, was_cut=False)
        [call] = message.tool_calls
        assert (message.content, call.name) == (None, "act"), text
        Draft202012Validator(schema).validate(json.loads(call.arguments))
        num_read += 1
    assert num_read > NUM_SAMPLES // 4


def plain_call(tools: ToolFormat, value: str) -> str:
    """A call of `act` whose parameter `a` has this text."""
    if tools is qwen3_coder.QWEN3_CODER:
        return coder(a=value)
    if tools is glm4.GLM4:
        return f"<tool_call>act\n<arg_key>a</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"
    return (
        '<minimax:tool_call>\n<invoke name="act">\n'
        f'<parameter name="a">{value}</parameter>\n</invoke>\n</minimax:tool_call>'
    )


# Texts that are in the form of the standards, most of them examples of the RFCs, and texts that are not.
FORMATTED = {
    "date": (["1985-04-12", "2000-02-29"], ["1985-4-12", "1985-04-31", "1985-13-01", "x1985-04-12"]),
    "time": (["23:20:50.52Z", "16:39:57-08:00", "23:59:60Z"], ["24:00:00Z", "16:39:57", "16:60:00Z"]),
    "date-time": (["1985-04-12T23:20:50.52Z", "1996-12-19T16:39:57-08:00"], ["1985-04-12", "1985-04-12 23:20"]),
    "duration": (["P3Y6M4DT12H30M5S", "PT36H", "P4W"], ["P", "P1D2H", "PT", "4W"]),
    "email": (["john.smith@example.com", "a+b@x.org"], ["john", "@x", "a..b@x.org", "a@b@c"]),
    "hostname": (["www.example.com", "a"], ["-a.com", "a..b", "a_b"]),
    "ipv4": (["192.0.2.235", "0.0.0.0"], ["256.1.1.1", "1.2.3", "01.2.3.4"]),
    "ipv6": (
        ["2001:DB8:0:0:8:800:200C:417A", "FF01::101", "::1", "::", "::FFFF:129.144.52.38", "1::8"],
        ["1:2:3", "1::2::3", "12345::", ":::", "1:2:3:4:5:6:7:8:9"],
    ),
    "uuid": (["f81d4fae-7dec-11d0-a765-00a0c91e6bf6"], ["f81d4fae-7dec-11d0-a765", "f81d4fae7dec11d0a76500a0c91e6bf6"]),
    "uri": (
        ["ftp://ftp.is.co.za/rfc/rfc1808.txt", "mailto:John.Doe@example.com", "tel:+1-816"],
        ["a b", "//x", "x:<y>"],
    ),
}


@each_tag_format
@pytest.mark.parametrize("name", FORMATTED)
def test_format_of_a_string_without_quotes_is_held(judge: Judge, tools: ToolFormat, name: str) -> None:
    schema = {**CLOSED, "properties": {"a": {"type": "string", "format": name}}, "required": ["a"]}
    grammar = tool_grammar(
        [ToolSpec("act", schema, is_strict=True)], OutputForm(tools, {}), is_required=True, is_parallel=False
    )
    assert grammar is not None
    good, bad = FORMATTED[name]
    for text in good:
        assert judge.follows({}, grammar, plain_call(tools, text)), text
    for text in (*bad, ""):
        assert not judge.follows({}, grammar, plain_call(tools, text)), text


@each_tag_format
def test_format_that_is_not_known_says_nothing(judge: Judge, tools: ToolFormat) -> None:
    schema = {**CLOSED, "properties": {"a": {"type": "string", "format": "color"}}, "required": ["a"]}
    specs = [ToolSpec("act", schema, is_strict=True)]
    grammar = tool_grammar(specs, OutputForm(tools, {}), is_required=True, is_parallel=False)
    assert grammar is not None
    assert judge.follows({}, grammar, plain_call(tools, "any text"))


@each_tag_format
@pytest.mark.parametrize(
    ("parameter", "keyword"),
    [
        ({"type": "string", "not": {"const": "x"}}, "not"),
        ({"type": "string", "if": {"minLength": 3}, "then": {"pattern": "^a"}}, "if"),
        ({"enum": ["x", "yy"], "minLength": 2}, "minLength"),
        ({"type": "string", "enum": ["x", "y"], "not": {"const": "x"}}, "not"),
    ],
)
def test_what_only_the_check_can_hold_is_refused_for_a_strict_tool(
    tools: ToolFormat, parameter: dict[str, Any], keyword: str
) -> None:
    schema = {**CLOSED, "properties": {"a": parameter}}
    with pytest.raises(ValidationFailed, match=f"cannot be strict because of `{keyword}`"):
        tool_grammar(
            [ToolSpec("act", schema, is_strict=True)], OutputForm(tools, {}), is_required=False, is_parallel=True
        )
    assert tool_grammar([ToolSpec("act", schema)], OutputForm(tools, {}), is_required=True, is_parallel=True)


def coder(**given: str) -> str:
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in given.items())
    return f"<tool_call>\n<function=act>\n{parameters}</function>\n</tool_call>"


def python(**given: str) -> str:
    return f"[act({', '.join(f'{key}={value}' for key, value in given.items())})]"


@pytest.mark.parametrize(
    ("tools", "write", "text"),
    [(qwen3_coder.QWEN3_CODER, coder, "x"), (pythonic.PYTHONIC, python, '"x"')],
    ids=["qwen3_coder", "pythonic"],
)
def test_optional_parameters_may_be_left_out_and_required_ones_not(
    judge: Judge, tools: ToolFormat, write: Any, text: str
) -> None:
    none = "None" if tools is pythonic.PYTHONIC else "null"

    def accepts(case: str, **given: str) -> bool:
        specs = [ToolSpec("act", SCHEMAS[case], is_strict=True)]
        grammar = tool_grammar(specs, OutputForm(tools, {}), is_required=True, is_parallel=False)
        assert grammar is not None
        return judge.follows({}, grammar, write(**given))

    for given in ({}, {"a": text}, {"b": "2"}, {"c": none}, {"a": text, "c": none}, {"a": text, "b": "2", "c": none}):
        assert accepts("left out", **given), given
    assert accepts("left out first", b="2")
    assert accepts("left out first", a="1", b="2")
    assert accepts("any", k=text, other=text)
    assert accepts("maybe text", a=none, b=none)
    for given in ({"b": "2", "a": text}, {"d": "1"}, {"b": "x"}, {"a": text, "b": "2", "b2": "2"}):
        assert not accepts("left out", **given), given
    assert not accepts("left out first", a="1")
    assert not accepts("left out first")
    assert not accepts("none", a="1")


REFUSED = [
    ({"type": "object", "anyOf": [{"required": ["a"]}]}, "`anyOf`"),
    ({"type": "object", "minProperties": 1}, "`minProperties`"),
    ({"type": "array"}, "'array'"),
]


@each_format
@pytest.mark.parametrize(("schema", "words"), REFUSED)
def test_schema_that_cannot_be_written_is_refused(tools: ToolFormat, schema: dict[str, Any], words: str) -> None:
    specs = [ToolSpec("act", schema)]
    with pytest.raises(ValidationFailed, match=words):
        tool_grammar(specs, OutputForm(tools, {}), is_required=True, is_parallel=True)


@each_tag_format
@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ({"type": "string", "pattern": "a$|b"}, "pattern"),
        ({"anyOf": [NAME, {"type": "string", "minLength": 9}]}, "alternatives"),
        ({"enum": ["a</parameter></arg_value>b"]}, "no value"),
        ({"enum": ["a", "b"], "const": "c"}, "no value"),
    ],
)
def test_string_that_cannot_be_written_in_a_tag_is_refused(
    tools: ToolFormat, parameter: dict[str, Any], words: str
) -> None:
    specs = [ToolSpec("act", {**CLOSED, "properties": {"a": parameter}})]
    with pytest.raises(ValidationFailed, match=words):
        tool_grammar(specs, OutputForm(tools, {}), is_required=True, is_parallel=True)


@each_tag_format
def test_names_that_would_end_a_tag_are_refused_or_left_out(tools: ToolFormat) -> None:
    form, sign = OutputForm(tools, {}), {"glm45": "<", "minimax_m2": '"'}.get(tools.name, ">")
    key = f"x{sign}"
    for spec in (ToolSpec(f"a{sign}b"), ToolSpec("act", {"properties": {key: {}}, "required": [key]})):
        with pytest.raises(ValidationFailed, match="ends a name"):
            tool_grammar([spec], form, is_required=True, is_parallel=True)
    grammar = tool_grammar([ToolSpec("act", {"properties": {key: {}}})], form, is_required=True, is_parallel=True)
    assert grammar is not None
    assert json.dumps(key)[1:-1] not in grammar.text


@pytest.mark.parametrize("untagged", ["<function=act></function>", "so <function=act>\n</function>"])
def test_strict_call_without_its_tag_does_not_get_past(judge: Judge, untagged: str) -> None:
    specs = [ToolSpec("act", SCHEMAS["numbers"], is_strict=True)]
    assert parse_whole(ChatParser(qwen3_coder.QWEN3_CODER, None, specs), untagged, was_cut=False).tool_calls
    form = OutputForm(qwen3_coder.QWEN3_CODER, {})
    grammar = tool_grammar(specs, form, is_required=False, is_parallel=True)
    assert grammar is not None
    assert not judge.follows({}, grammar, untagged)
    assert judge.follows({}, grammar, "so <function>")


def test_values_stand_on_lines_of_their_own_as_the_template_writes_them(judge: Judge) -> None:
    specs = [ToolSpec("act", {**CLOSED, "properties": {"a": {"type": "string"}}})]
    grammar = tool_grammar(specs, OutputForm(qwen3_coder.QWEN3_CODER, {}), is_required=True, is_parallel=False)
    assert grammar is not None
    form = "<tool_call>\n<function=act>\n<parameter=a>\nx{}</parameter>\n</function>\n</tool_call>"
    assert judge.follows({}, grammar, form.format("\n"))
    assert not judge.follows({}, grammar, form.format(""))


def test_names_that_python_does_not_have_are_refused_or_left_out() -> None:
    form = OutputForm(pythonic.PYTHONIC, {})
    for spec in (ToolSpec("a b"), ToolSpec("act", {"properties": {"x=": {}}, "required": ["x="]})):
        with pytest.raises(ValidationFailed, match="no name of Python"):
            tool_grammar([spec], form, is_required=True, is_parallel=True)
    grammar = tool_grammar([ToolSpec("act", {"properties": {"x=": {}}})], form, is_required=True, is_parallel=True)
    assert grammar is not None
    assert "x=" not in grammar.text


def test_grammar_of_many_optional_parameters_stays_short() -> None:
    parameters = {f"parameter{index}": {"type": "integer"} for index in range(200)}
    specs = [ToolSpec("act", {**CLOSED, "properties": parameters})]
    grammar = tool_grammar(specs, OutputForm(pythonic.PYTHONIC, {}), is_required=True, is_parallel=True)
    assert grammar is not None
    assert len(grammar.text) < 128 * 1024


@pytest.mark.parametrize("text", ["[act(a=1, b=2)]", "so [ act (a=1)]", "[act()]"])
def test_strict_pythonic_call_does_not_get_past(judge: Judge, text: str) -> None:
    specs = [ToolSpec("act", SCHEMAS["numbers"], is_strict=True)]
    assert parse_whole(ChatParser(pythonic.PYTHONIC, None, specs), text, was_cut=False).tool_calls
    grammar = tool_grammar(specs, OutputForm(pythonic.PYTHONIC, {}), is_required=False, is_parallel=True)
    assert grammar is not None
    assert not judge.follows({}, grammar, text)
    assert judge.follows({}, grammar, "so [act(a=3, b=2)] [1] [act] [other(x=1)]")


@each_format
def test_long_texts_can_be_asked_for(judge: Judge, tools: ToolFormat) -> None:
    """The limits of the library leave room for the bounds that real tools have."""
    parameters = {
        "a": {"type": "string", "maxLength": 20_000},
        "b": {"type": "string", "minLength": 1, "maxLength": 300, "pattern": "^[a-z ]+$"},
    }
    specs = [ToolSpec("act", {**CLOSED, "properties": parameters, "required": ["a", "b"]})]
    if tools not in (pythonic.PYTHONIC, qwen3_coder.QWEN3_CODER):
        return  # the tags do not matter
    grammar = tool_grammar(specs, OutputForm(tools, {}), is_required=True, is_parallel=True)
    assert grammar is not None
    write, quote = (python, '"') if tools is pythonic.PYTHONIC else (coder, "")
    assert judge.follows({}, grammar, write(a=f"{quote}{'x' * 500}{quote}", b=f"{quote}so it is{quote}"))
    assert not judge.follows({}, grammar, write(a=f"{quote}x{quote}", b=f"{quote}So{quote}"))
