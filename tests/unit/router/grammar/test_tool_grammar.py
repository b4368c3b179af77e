"""What the grammars let a model write, judged by the library that enforces them, and that the parser reads it back."""

import json
from typing import Any

import llguidance
import pytest
from textmill_router.errors import ValidationFailed
from textmill_router.grammar.reasoning_grammar import ReasoningForm, after_reasoning
from textmill_router.grammar.request_forms import AskedGrammar, AskedKind
from textmill_router.grammar.tool_grammar import OutputForm, tool_grammar
from textmill_router.parsers.chat_parser import ChatParser
from textmill_router.parsers.formats import ReasoningFormat
from textmill_router.parsers.tools import (
    command_r,
    deepseek,
    functools,
    generic_json,
    glm4,
    hermes,
    kimi_k2,
    llama3_json,
    minimax,
    mistral,
    pythonic,
    qwen3_coder,
    tool_call_token,
)
from textmill_router.parsers.tools.tool_format import ToolSpec

from tests.fakes.chat_outputs import parse_whole
from tests.fakes.chat_templates import DEEPSEEK_TAGS, GLM_TAGS, KIMI_TAGS
from tests.fakes.grammar_judge import END_ID, Judge, ids_of

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
ANY_ARGUMENTS = {"type": "object", "additionalProperties": True}
TOOLS = [ToolSpec("weather", CITY, is_strict=True), ToolSpec("say", ANY_ARGUMENTS)]


def accepts(judge: Judge, form: OutputForm, text: str, *, is_required: bool, is_parallel: bool = True) -> bool:
    grammar = tool_grammar(TOOLS, form, is_required=is_required, is_parallel=is_parallel)
    assert grammar is not None
    return judge.follows(form.marker_ids, grammar, text)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


HERMES = OutputForm(hermes.HERMES, {})
HERMES_TOKENS = OutputForm(hermes.HERMES, ids_of("<tool_call>", "</tool_call>"))
LLAMA = OutputForm(llama3_json.LLAMA3_JSON, {})
MISTRAL = OutputForm(mistral.MISTRAL, ids_of("[TOOL_CALLS]"))
MISTRAL_NAMES = OutputForm(mistral.MISTRAL, ids_of("[TOOL_CALLS]", "[ARGS]"))
JSON = OutputForm(generic_json.GENERIC_JSON, {})
PYTHONIC = OutputForm(pythonic.PYTHONIC, {})
CODER = OutputForm(qwen3_coder.QWEN3_CODER, {})
CODER_TOKENS = OutputForm(qwen3_coder.QWEN3_CODER, ids_of("<tool_call>", "</tool_call>"))
WEATHER, SAY, WRONG = '{"city": "Oslo"}', '{"text": [1, {"a": null}]}', '{"town": "Oslo"}'

# The arguments of `say` in the second of two calls, where the format cannot write those of the others.
SAID = dict.fromkeys(("qwen3_coder", "pythonic", "glm45", "minimax_m2"), '{"text": "x"}')


def coder_call(name: str, key: str, value: str) -> str:
    return f"<tool_call>\n<function={name}>\n<parameter={key}>\n{value}\n</parameter>\n</function>\n</tool_call>"


def action_list(*actions: str) -> str:
    lines = ",\n    ".join(actions)
    return f"<|START_ACTION|>[\n    {lines}\n]<|END_ACTION|>"


def deepseek_calls(*calls: tuple[str, str], is_fenced: bool = False) -> str:
    begin, call, separator, end_of_call, end = DEEPSEEK_TAGS
    if is_fenced:
        written = [
            f"{call}function{separator}{name}\n```json\n{arguments}\n```{end_of_call}" for name, arguments in calls
        ]
    else:
        written = [f"{call}{name}{separator}{arguments}{end_of_call}" for name, arguments in calls]
    return f"{begin}{(chr(10) if is_fenced else '').join(written)}{end}"


def kimi_calls(*calls: tuple[str, str]) -> str:
    begin, call, separator, end_of_call, end = KIMI_TAGS
    return f"{begin}{''.join(f'{call}functions.{name}{separator}{text}{end_of_call}' for name, text in calls)}{end}"


def glm_call(name: str, key: str, value: str) -> str:
    return f"<tool_call>{name}\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"


def minimax_calls(*calls: tuple[str, str, str]) -> str:
    written = [
        f'<invoke name="{name}">\n<parameter name="{key}">{value}</parameter>\n</invoke>\n'
        for name, key, value in calls
    ]
    return f"<minimax:tool_call>\n{''.join(written)}</minimax:tool_call>"


# Form, one call, two calls, a call whose arguments break the schema.
FORMS = [
    (
        form,
        f'<tool_call>\n{{"name": "weather", "arguments": {WEATHER}}}\n</tool_call>',
        f'<tool_call>\n{{"name": "weather", "arguments": {WEATHER}}}\n</tool_call>\n'
        f'<tool_call>\n{{"name": "say", "arguments": {SAY}}}\n</tool_call>',
        f'<tool_call>\n{{"name": "weather", "arguments": {WRONG}}}\n</tool_call>',
    )
    for form in (HERMES, HERMES_TOKENS)
] + [
    (
        LLAMA,
        f'{{"name": "weather", "parameters": {WEATHER}}}',
        f'{{"name": "weather", "parameters": {WEATHER}}}; {{"name": "say", "parameters": {SAY}}}',
        f'{{"name": "weather", "parameters": {WRONG}}}',
    ),
    (
        MISTRAL,
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {WEATHER}}}]',
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {WEATHER}}}, {{"name": "say", "arguments": {SAY}}}]',
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {WRONG}}}]',
    ),
    (
        MISTRAL_NAMES,
        f"[TOOL_CALLS]weather[ARGS]{WEATHER}",
        f"[TOOL_CALLS]weather[ARGS]{WEATHER}[TOOL_CALLS]say[ARGS]{SAY}",
        f"[TOOL_CALLS]weather[ARGS]{WRONG}",
    ),
    (
        PYTHONIC,
        '[weather(city="Oslo")]',
        '[weather(city="Oslo"), say(text="x")]',
        '[weather(town="Oslo")]',
    ),
    *(
        (
            form,
            coder_call("weather", "city", "Oslo"),
            f"{coder_call('weather', 'city', 'Oslo')}\n{coder_call('say', 'text', 'x')}",
            coder_call("weather", "town", "Oslo"),
        )
        for form in (CODER, CODER_TOKENS)
    ),
    *(
        (
            OutputForm(tools, ids),
            deepseek_calls(("weather", WEATHER), is_fenced=is_fenced),
            deepseek_calls(("weather", WEATHER), ("say", SAY), is_fenced=is_fenced),
            deepseek_calls(("weather", WRONG), is_fenced=is_fenced),
        )
        for tools, is_fenced in ((deepseek.DEEPSEEK_V3, True), (deepseek.DEEPSEEK_V31, False))
        for ids in ({}, ids_of(*DEEPSEEK_TAGS))
    ),
    *(
        (
            OutputForm(kimi_k2.KIMI_K2, ids),
            kimi_calls(("weather:0", WEATHER)),
            kimi_calls(("weather:10", WEATHER), ("say:11", SAY)),
            kimi_calls(("weather:0", WRONG)),
        )
        for ids in ({}, ids_of(*KIMI_TAGS))
    ),
    *(
        (
            OutputForm(glm4.GLM4, ids),
            glm_call("weather", "city", "Oslo"),
            f"{glm_call('weather', 'city', 'Oslo')}\n{glm_call('say', 'text', 'x')}",
            glm_call("weather", "town", "Oslo"),
        )
        for ids in ({}, ids_of(*GLM_TAGS))
    ),
    (
        OutputForm(minimax.MINIMAX_M2, {}),
        minimax_calls(("weather", "city", "Oslo")),
        minimax_calls(("weather", "city", "Oslo"), ("say", "text", "x")),
        minimax_calls(("weather", "town", "Oslo")),
    ),
    (
        OutputForm(minimax.MINIMAX_M1, {}),
        f'<tool_calls>\n{{"name": "weather", "arguments": {WEATHER}}}\n</tool_calls>',
        f'<tool_calls>\n{{"name": "weather", "arguments": {WEATHER}}}\n'
        f'{{"name": "say", "arguments": {SAY}}}\n</tool_calls>',
        f'<tool_calls>\n{{"name": "weather", "arguments": {WRONG}}}\n</tool_calls>',
    ),
    (
        OutputForm(functools.FUNCTOOLS, {}),
        f'functools[{{"name": "weather", "arguments": {WEATHER}}}]',
        f'functools[{{"name": "weather", "arguments": {WEATHER}}}, {{"name": "say", "arguments": {SAY}}}]',
        f'functools[{{"name": "weather", "arguments": {WRONG}}}]',
    ),
    (
        OutputForm(tool_call_token.PHI4_MINI, {}),
        f'<|tool_call|>{{"name": "weather", "arguments": {WEATHER}}}<|/tool_call|>',
        f'<|tool_call|>{{"name": "weather", "arguments": {WEATHER}}}<|/tool_call|>'
        f'<|tool_call|>{{"name": "say", "arguments": {SAY}}}<|/tool_call|>',
        f'<|tool_call|>{{"name": "weather", "arguments": {WRONG}}}<|/tool_call|>',
    ),
    (
        OutputForm(command_r.COMMAND_R, {}),
        action_list(f'{{"tool_call_id": "0", "tool_name": "weather", "parameters": {WEATHER}}}'),
        action_list(
            f'{{"tool_call_id": "0", "tool_name": "weather", "parameters": {WEATHER}}}',
            f'{{"tool_call_id": "1", "tool_name": "say", "parameters": {SAY}}}',
        ),
        action_list(f'{{"tool_call_id": "0", "tool_name": "weather", "parameters": {WRONG}}}'),
    ),
    (
        OutputForm(tool_call_token.GRANITE, {}),
        f'<|tool_call|>[{{"name": "weather", "arguments": {WEATHER}}}]',
        f'<|tool_call|>[{{"name": "weather", "arguments": {WEATHER}}}, {{"name": "say", "arguments": {SAY}}}]',
        f'<|tool_call|>[{{"name": "weather", "arguments": {WRONG}}}]',
    ),
    (
        JSON,
        f'{{"name": "weather", "parameters": {WEATHER}}}',
        f'{{"name": "weather", "parameters": {WEATHER}}}\n{{"name": "say", "parameters": {SAY}}}',
        f'{{"name": "weather", "parameters": {WRONG}}}',
    ),
]
each_form = pytest.mark.parametrize(
    ("form", "one", "two", "wrong"), FORMS, ids=lambda value: value.tools.name if isinstance(value, OutputForm) else ""
)


@each_form
def test_required_calls_are_the_only_output(judge: Judge, form: OutputForm, one: str, two: str, wrong: str) -> None:
    assert accepts(judge, form, one, is_required=True)
    assert accepts(judge, form, two, is_required=True)
    assert not accepts(judge, form, two, is_required=True, is_parallel=False)
    assert not accepts(judge, form, wrong, is_required=True)
    assert not accepts(judge, form, "It rains.", is_required=True)
    assert not accepts(judge, form, "", is_required=True)
    assert not accepts(judge, form, one[:-1], is_required=True)


@each_form
def test_strict_tools_leave_text_free(judge: Judge, form: OutputForm, one: str, two: str, wrong: str) -> None:
    assert accepts(judge, form, "It rains.\n{} [1] <b>", is_required=False)
    assert accepts(judge, form, "", is_required=False)
    assert accepts(judge, form, one, is_required=False)
    assert accepts(judge, form, f"I will look.\n{two}", is_required=False)
    assert not accepts(judge, form, wrong, is_required=False)
    assert not accepts(judge, form, f"I will look.\n{wrong}", is_required=False)


@each_form
def test_parser_reads_what_the_grammar_makes(form: OutputForm, one: str, two: str, wrong: str) -> None:
    for text, calls in (
        (one, [("weather", WEATHER)]),
        (two, [("weather", WEATHER), ("say", SAID.get(form.tools.name, SAY))]),
    ):
        message = parse_whole(ChatParser(form.tools, None, TOOLS), text, was_cut=False)
        assert message.content is None
        assert [(call.name, call.arguments) for call in message.tool_calls] == calls


@pytest.mark.parametrize(
    "text",
    [
        '{"name":"weather","parameters": {}}',
        '{ "name" : "weather"}',
        '{"parameters": {"town": 1}, "name": "weather"}',
        '{"function": {"name": "weather"}}',
        '{"type": "function", "name": "weather"}',
    ],
)
def test_no_other_spelling_of_a_strict_call_gets_past(judge: Judge, text: str) -> None:
    """Each of them would be a call to the parser."""
    assert parse_whole(
        ChatParser(generic_json.GENERIC_JSON, None, [ToolSpec("weather")]), text, was_cut=False
    ).tool_calls
    assert not accepts(judge, JSON, text, is_required=False)
    assert not accepts(judge, JSON, f'{text} {{"name": "weather", "parameters": {WEATHER}}}', is_required=False)


@pytest.mark.parametrize("name", ["weather", "été", 'a"b\\'])
def test_strict_tool_is_held_in_each_spelling_that_is_a_call(judge: Judge, name: str) -> None:
    grammar = tool_grammar([ToolSpec(name, CITY, is_strict=True)], JSON, is_required=False, is_parallel=True)
    assert grammar is not None
    plain, ascii_only = json.dumps(name, ensure_ascii=False), json.dumps(name)
    in_numbers = '"' + "".join(f"\\u{ord(char):04x}" for char in name) + '"'
    for key, spelt in (('"name"', plain), ('"name"', ascii_only), ('"name"', in_numbers), ('"n\\u0061me"', plain)):
        text = f'{{{key}: {spelt}, "parameters": {WRONG}}}'
        message = parse_whole(ChatParser(generic_json.GENERIC_JSON, None, [ToolSpec(name)]), text, was_cut=False)
        assert bool(message.tool_calls) == (key == '"name"' and spelt in (plain, ascii_only))
        assert not (message.tool_calls and judge.follows({}, grammar, text))
    assert judge.follows({}, grammar, f'{{"name": {plain}, "parameters": {WEATHER}}}')


def test_answer_that_is_json_but_no_call_is_free(judge: Judge) -> None:
    assert accepts(judge, JSON, '{"name": "Ada", "city": "London"}', is_required=False)


def test_tag_in_letters_does_not_get_past_a_tag_that_is_a_token(judge: Judge) -> None:
    grammar = tool_grammar(TOOLS, HERMES_TOKENS, is_required=False, is_parallel=True)
    assert grammar is not None
    matcher = judge.matcher(HERMES_TOKENS.marker_ids, grammar)
    letters = [token_id for char in "so <tool_call>" for token_id in judge.library.encode(char).ids]
    assert matcher.consume_tokens(letters[:-1])
    assert not matcher.consume_token(letters[-1])


@pytest.mark.parametrize("marker_ids", [{}, ids_of("<think>", "</think>")], ids=["letters", "tokens"])
def test_reasoning_stands_free_before_calls(judge: Judge, marker_ids: dict[str, int]) -> None:
    call = f'{{"name": "weather", "parameters": {WEATHER}}}'
    form = OutputForm(generic_json.GENERIC_JSON, marker_ids, ReasoningForm(ReasoningFormat.THINK, marker_ids))
    assert accepts(judge, form, f'<think>\nIs it {{"name": "weather", 1}}?\n</think>\n\n{call}', is_required=True)
    assert accepts(judge, form, call, is_required=True)
    assert not accepts(judge, form, f"Is it? {call}", is_required=True)
    inside = OutputForm(
        generic_json.GENERIC_JSON, marker_ids, ReasoningForm(ReasoningFormat.THINK, marker_ids, is_open=True)
    )
    assert accepts(judge, inside, f"Is it?\n</think>\n\n{call}", is_required=True)
    assert not accepts(judge, inside, call, is_required=True)


@pytest.mark.parametrize("marker_ids", [{}, ids_of("<think>", "</think>")], ids=["letters", "tokens"])
def test_format_holds_for_what_follows_the_reasoning(judge: Judge, marker_ids: dict[str, int]) -> None:
    """And only for that; the blanks of JSON are bounded as in a grammar without reasoning."""
    schema = AskedGrammar(AskedKind.JSON_SCHEMA, json.dumps(CITY))
    either = after_reasoning(schema, ReasoningForm(ReasoningFormat.THINK, marker_ids))
    inside = after_reasoning(schema, ReasoningForm(ReasoningFormat.THINK, marker_ids, is_open=True))
    for thought in ("", "\n", "Is it 5? {} /\n[1]\n"):
        assert judge.follows(marker_ids, either, f"<think>{thought}</think>\n\n{WEATHER}")
        assert judge.follows(marker_ids, inside, f"{thought}</think>{WEATHER}")
        assert not judge.follows(marker_ids, either, f"<think>{thought}</think>\n\n{WRONG}")
        assert not judge.follows(marker_ids, inside, f"{thought}</think>Hm{WEATHER}")
    assert judge.follows(marker_ids, either, WEATHER)
    assert not judge.follows(marker_ids, inside, WEATHER)
    assert not judge.follows(marker_ids, either, f"<think>{WEATHER}")
    assert not judge.follows(marker_ids, either, f"<think>a</think>b</think>{WEATHER}")
    assert not judge.follows(marker_ids, either, '{  "city": "Oslo"}')
    assert not judge.follows(marker_ids, inside, "</think>{\n" + " " * 33 + '"city": "Oslo"}')
    assert after_reasoning(schema, None) == schema.whole_output()


@pytest.mark.parametrize(
    ("expression", "match", "other"),
    [
        (r"\d+/[/\d]+", "12/3/4", "12/a"),
        (r"a\/b", "a/b", r"a\/b"),
        (r"a\\/b", r"a\/b", "a/b"),
        ('a\nb|"', "a\nb", "a b"),
        ("a\\\nb", "a\nb", "anb"),
        ("", "", "a"),
    ],
)
def test_expression_means_the_same_behind_reasoning(judge: Judge, expression: str, match: str, other: str) -> None:
    """As it does alone."""
    alone = llguidance.LLMatcher.grammar_from_regex(expression)
    vocabulary = llguidance.LLTokenizer(judge.library.to_str(), eos_token=[END_ID])
    for text, matches in ((match, True), (other, False)):
        matcher = llguidance.LLMatcher(vocabulary, alone, log_level=0)
        assert (matcher.consume_tokens(judge.library.encode(text).ids) and matcher.is_accepting()) is matches
        grammar = after_reasoning(AskedGrammar(AskedKind.REGEX, expression), ReasoningForm(ReasoningFormat.THINK, {}))
        assert judge.follows({}, grammar, text) is matches
        assert judge.follows({}, grammar, f"<think>so /</think>{text}") is matches


def test_closing_tag_in_letters_ends_no_reasoning_that_ends_with_a_token(judge: Judge) -> None:
    marker_ids = ids_of("<think>", "</think>")
    form = ReasoningForm(ReasoningFormat.THINK, marker_ids, is_open=True)
    matcher = judge.matcher(marker_ids, after_reasoning(AskedGrammar(AskedKind.REGEX, "a"), form))
    letters = [token_id for char in "so </think>" for token_id in judge.library.encode(char).ids]
    assert matcher.consume_tokens(letters[:-1])
    assert not matcher.consume_token(letters[-1])


def test_request_does_not_set_the_options_of_its_schema(judge: Judge) -> None:
    schema = {"type": "object", "x-guidance": {"whitespace_pattern": "[ ]*"}}
    form = ReasoningForm(ReasoningFormat.THINK, {})
    grammar = after_reasoning(AskedGrammar(AskedKind.JSON_SCHEMA, json.dumps(schema)), form)
    assert judge.follows({}, grammar, '{"a": 1}')
    assert not judge.follows({}, grammar, '{   "a": 1}')
    assert not accepts(judge, JSON, '{"name": "say", "parameters": {   "a": 1}}', is_required=True)


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object", "properties": {}}], ids=str)
@pytest.mark.parametrize(
    ("form", "call", "argument"),
    [
        (JSON, '{"name": "now", "parameters": {%s}}', '"a": 1'),
        (HERMES, '<tool_call>\n{"name": "now", "arguments": {%s}}\n</tool_call>', '"a": 1'),
        (PYTHONIC, "[now(%s)]", "a=1"),
        (CODER, "<tool_call>\n<function=now>\n%s</function>\n</tool_call>", "<parameter=a>\n1\n</parameter>\n"),
    ],
    ids=["json", "hermes", "pythonic", "qwen3_coder"],
)
def test_a_tool_without_parameters_is_called_without_arguments(
    judge: Judge, form: OutputForm, call: str, argument: str, parameters: dict[str, Any] | None
) -> None:
    """OpenAI: omitting `parameters` defines a function with an empty parameter list."""
    grammar = tool_grammar([ToolSpec("now", parameters)], form, is_required=True, is_parallel=True)
    assert grammar is not None
    assert judge.follows(form.marker_ids, grammar, call % "")
    assert not judge.follows(form.marker_ids, grammar, call % argument)


def test_nothing_is_enforced_without_need() -> None:
    free = [ToolSpec("say", ANY_ARGUMENTS), ToolSpec("weather", CITY)]
    assert tool_grammar(free, JSON, is_required=False, is_parallel=True) is None
    assert tool_grammar([], JSON, is_required=True, is_parallel=True) is None


@each_form
def test_an_answer_is_calls_or_the_content_that_was_asked_for(
    judge: Judge, form: OutputForm, one: str, two: str, wrong: str
) -> None:
    """OpenAI takes tools and a response format together: calls are free, the final text is in the format."""
    asked = AskedGrammar(AskedKind.JSON_SCHEMA, json.dumps(CITY))

    def accepts_beside(text: str, *, is_parallel: bool = True, **more: Any) -> bool:
        grammar = tool_grammar(
            TOOLS, form, is_required=False, is_parallel=is_parallel, content=more.get("content", asked)
        )
        assert grammar is not None
        return judge.follows(form.marker_ids, grammar, text)

    assert accepts_beside(WEATHER)
    assert accepts_beside(one)
    assert accepts_beside(two)
    assert not accepts_beside(two, is_parallel=False)
    for other in (WRONG, wrong, "It rains.", "", one[:-1], f"{one}{WEATHER}", f"{WEATHER}{one}"):
        assert not accepts_beside(other), other
    assert accepts_beside("ab", content=AskedGrammar(AskedKind.REGEX, "[a-c]+"))
    numbers = AskedGrammar(AskedKind.JSON_SCHEMA, '{"type": "array", "items": {"type": "integer"}}')
    assert accepts_beside("[1, 2]", content=numbers)
    assert accepts_beside(two, content=numbers)
    assert not accepts_beside(wrong, content=numbers)
    free = tool_grammar([ToolSpec("weather", CITY)], form, is_required=False, is_parallel=True, content=asked)
    assert free is not None
    assert judge.follows(form.marker_ids, free, wrong)  # no tool is strict


def test_references_inside_a_tool_hold_beside_a_content(judge: Judge) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": False}
    schema = {**CITY, "properties": {"city": {"$ref": "#/$defs/node"}}, "$defs": {"node": node}}
    asked = AskedGrammar(AskedKind.JSON_SCHEMA, '{"type": "object"}')
    specs = [ToolSpec("a", schema, is_strict=True)]
    grammar = tool_grammar(specs, JSON, is_required=False, is_parallel=False, content=asked)
    assert grammar is not None
    assert judge.follows({}, grammar, '{"name": "a", "parameters": {"city": {"next": {"next": {}}}}}')
    strings = AskedGrammar(AskedKind.JSON_SCHEMA, '{"type": "string"}')
    grammar = tool_grammar(specs, JSON, is_required=False, is_parallel=False, content=strings)
    assert grammar is not None
    assert not judge.follows({}, grammar, '{"name": "a", "parameters": {"city": {"next": 5}}}')


@each_form
def test_tools_that_are_shown_and_not_allowed_are_not_called(
    judge: Judge, form: OutputForm, one: str, two: str, wrong: str
) -> None:
    grammar = tool_grammar([ToolSpec("weather")], form, is_required=False, is_parallel=True, is_narrowed=True)
    assert grammar is not None
    assert judge.follows(form.marker_ids, grammar, f"I will look.\n{one}")
    assert judge.follows(form.marker_ids, grammar, wrong)  # no tool is strict
    reader = ChatParser(form.tools, None, [ToolSpec("weather")])
    calls = parse_whole(reader, two, was_cut=False).tool_calls
    assert len(calls) == 1 or not judge.follows(form.marker_ids, grammar, two)


def test_arguments_must_be_an_object() -> None:
    with pytest.raises(ValidationFailed, match=r"`sum`.*'array'"):
        tool_grammar([ToolSpec("sum", {"type": "array"})], JSON, is_required=True, is_parallel=True)


def test_names_with_quotes_and_signs_stay_themselves(judge: Judge) -> None:
    name = 'a"b/c.*\\'
    for is_required in (True, False):
        grammar = tool_grammar([ToolSpec(name, None, True)], JSON, is_required=is_required, is_parallel=False)
        assert grammar is not None
        matcher = judge.matcher({}, grammar)
        text = json.dumps({"name": name, "parameters": {}})
        assert matcher.consume_tokens(judge.library.encode(text).ids), matcher.get_error()
        assert matcher.is_accepting()
