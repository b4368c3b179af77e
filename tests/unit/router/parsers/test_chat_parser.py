"""Every output gives its message in any pieces, a cut output gives no half tag, and the time is linear."""

import itertools
import json
import random
import re
from collections.abc import Sequence

import pytest
from textmill_router.parsers.chat_parser import ChatParser
from textmill_router.parsers.deltas import (
    ContentText,
    Delta,
    ParsedMessage,
    ReasoningText,
    ToolArguments,
    ToolCall,
    ToolCallStart,
    collect,
)
from textmill_router.parsers.formats import TOOL_FORMATS, ReasoningFormat, markers_of
from textmill_router.parsers.tools import hermes, kimi_k2, mistral, pythonic
from textmill_router.parsers.tools.tool_format import ToolFormat

from tests.fakes.chat_outputs import ALL, TOOLS, Output, parse_whole

NUM_RANDOM_SPLITS = 50
NUM_BROKEN_OUTPUTS = 200
ADVERSARIAL_CHARACTERS = 100_000
# Each of two readers looks at a character, and may look again at the character and behind a piece.
MAX_STEPS_A_CHARACTER = 6

Case = tuple[ToolFormat, ReasoningFormat | None, Output]
each_output = pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case[0].name}-{case[2].text[:40]!r}")


def new_parser(case: Case) -> ChatParser:
    counter = itertools.count()
    tools, reasoning, output = case
    return ChatParser(
        tools, reasoning, TOOLS, is_reasoning=output.is_reasoning, new_id=lambda name, index: f"call_{next(counter)}"
    )


def parse_pieces(case: Case, pieces: Sequence[str], was_cut: bool = False) -> ParsedMessage:
    parser = new_parser(case)
    deltas: list[Delta] = []
    for piece in pieces:
        deltas += parser.push(piece)
    return collect(deltas + parser.finish(was_cut))


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def certain(tools: ToolFormat, message: ParsedMessage) -> list[ToolCall]:
    """Return the calls of a cut answer, but for a call of Python that may still have become text."""
    return [call for call in message.tool_calls if tools is not pythonic.PYTHONIC or is_object(call.arguments)]


def shown(message: ParsedMessage) -> tuple[str, str]:
    """Return both texts without the spaces at their end, which may wait for the next text."""
    return (message.content or "").rstrip(), (message.reasoning_content or "").rstrip()


def wanted(output: Output) -> ParsedMessage:
    ids = output.ids or [f"call_{index}" for index in range(len(output.calls))]
    calls = [ToolCall(call_id, name, text) for call_id, (name, text) in zip(ids, output.calls, strict=True)]
    return ParsedMessage(output.content, output.reasoning, tuple(calls))


@each_output
def test_whole_output_gives_its_message(case: Case) -> None:
    assert parse_whole(new_parser(case), case[2].text, was_cut=False) == wanted(case[2])


@each_output
def test_arguments_are_whole_json_unless_the_call_is_unfinished(case: Case) -> None:
    parser = new_parser(case)
    message = parse_whole(parser, case[2].text, was_cut=False)
    broken = [index for index, call in enumerate(message.tool_calls) if not is_object(call.arguments)]
    assert (parser.first_unfinished_call is not None) is case[2].has_broken_call
    if broken:
        assert parser.first_unfinished_call == broken[0]


@each_output
def test_pieces_of_any_size_give_the_same_message(case: Case) -> None:
    text = case[2].text
    message = wanted(case[2])
    assert parse_pieces(case, list(text)) == message
    for cut in range(len(text) + 1):
        assert parse_pieces(case, [text[:cut], text[cut:]]) == message, cut
    random_source = random.Random(7)
    for _ in range(NUM_RANDOM_SPLITS):
        num_cuts = random_source.randint(1, max(1, len(text) // 3))
        cuts = sorted(random_source.choices(range(len(text) + 1), k=num_cuts))
        pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
        assert parse_pieces(case, pieces) == message, cuts


@pytest.mark.parametrize("tools", TOOL_FORMATS, ids=lambda tools: tools.name)
def test_broken_outputs_give_one_message_in_any_pieces(tools: ToolFormat) -> None:
    """Outputs with pieces of other outputs give one message, and no text shown before a cut is taken back."""
    random_source = random.Random(tools.name)
    texts = [output.text for format_of, reasoning, output in ALL if format_of is tools and reasoning is None]
    for _ in range(NUM_BROKEN_OUTPUTS):
        text = random_source.choice(texts)
        for _ in range(random_source.randint(1, 3)):
            at, other = random_source.randint(0, len(text)), random_source.choice(texts)
            start = random_source.randint(0, len(other))
            text = (
                text[:at]
                + other[start : start + random_source.randint(0, 12)]
                + text[at + random_source.randint(0, 4) :]
            )
        case = (tools, None, Output(text))
        whole = parse_pieces(case, [text])
        assert parse_pieces(case, list(text)) == whole, text
        cut = text[: random_source.randint(0, len(text))]
        begun = parse_pieces(case, [cut], was_cut=True)
        assert parse_pieces(case, list(cut), was_cut=True) == begun, cut
        for call, whole_call in zip(certain(tools, begun), whole.tool_calls, strict=False):
            assert (call.name, whole_call.arguments[: len(call.arguments)]) == (whole_call.name, call.arguments), text


@each_output
def test_output_cut_anywhere_shows_no_half_tag(case: Case) -> None:
    tools, reasoning, output = case
    for cut in range(len(output.text)):
        text = output.text[:cut]
        message = parse_pieces(case, [text], was_cut=True)
        assert parse_pieces(case, list(text), was_cut=True) == message, text
        markers = markers_of(tools, reasoning)
        if reasoning is not None and message.reasoning_content and not message.content:
            markers = frozenset({reasoning.tags.closing})  # inside reasoning all other tags are text
        halves = [marker[:size] for marker in markers for size in range(1, len(marker)) if text.endswith(marker[:size])]
        before = text.removesuffix(max(halves, key=len, default=""))
        assert shown(message) in [shown(parse_pieces(case, [before], was_cut)) for was_cut in (True, False)], text
        # Text shown before the end is never taken back.
        whole = wanted(output)
        assert (whole.reasoning_content or "").startswith((message.reasoning_content or "").rstrip()), text
        calls = certain(tools, message)
        assert len(calls) <= len(whole.tool_calls), text
        for call, whole_call in zip(calls, whole.tool_calls, strict=False):
            assert (call.id, call.name) == (whole_call.id, whole_call.name)
            assert whole_call.arguments.startswith(call.arguments), text


@each_output
def test_output_that_ends_by_itself_anywhere_loses_nothing(case: Case) -> None:
    """The message has all letters and digits of the text but those of a call's own keys, tags and ids."""
    output = case[2]
    if output.calls or output.reasoning or case[1] is not None:
        return
    for cut in range(len(output.text)):
        message = parse_pieces(case, [output.text[:cut]])
        if not message.tool_calls:
            assert (message.content or "") == output.text[:cut]


@each_output
def test_deltas_come_in_order_and_are_never_empty(case: Case) -> None:
    parser = new_parser(case)
    deltas: list[Delta] = []
    for char in case[2].text:
        deltas += parser.push(char)
    deltas += parser.finish(was_cut=False)
    num_calls = 0
    for delta in deltas:
        match delta:
            case ToolCallStart(index):
                assert index == num_calls
                num_calls += 1
            case ToolArguments(index, text):
                assert index == num_calls - 1
                assert text
            case ContentText(text) | ReasoningText(text):
                assert text


def test_arguments_are_streamed_as_they_come() -> None:
    parser = ChatParser(hermes.HERMES, None, TOOLS, new_id=lambda name, index: "call_x")
    assert parser.push('<tool_call>{"name": "say", "arguments"') == []
    assert parser.push(': {"te') == [ToolCallStart(0, "call_x", "say"), ToolArguments(0, '{"te')]
    assert parser.push('xt": "<') == [ToolArguments(0, 'xt": "<')]
    assert parser.push('/tool_call>"') == [ToolArguments(0, '/tool_call>"')]
    assert parser.push("}}</tool") == [ToolArguments(0, "}")]
    assert parser.finish(was_cut=True) == []


def test_text_is_held_back_only_while_it_may_be_a_tag() -> None:
    parser = ChatParser(hermes.HERMES, ReasoningFormat.THINK, TOOLS)
    assert parser.push("<thi") == []
    assert parser.push("s") == [ContentText("<this")]
    assert parser.push(" is") == [ContentText(" is")]
    assert parser.push(" ") == []
    assert parser.push("a <to") == [ContentText(" a")]
    assert parser.push("y>") == [ContentText(" <toy>")]


def test_without_tools_and_reasoning_text_passes_through() -> None:
    parser = ChatParser(None, None)
    text = ' <think>a</think> <tool_call>{"name": "add"}</tool_call> [TOOL_CALLS]'
    assert parser.push(text) == [ContentText(text)]
    assert parser.push("") == []
    assert parser.finish(was_cut=True) == []


@pytest.mark.parametrize("text", ["<", "a <tool_cal", "<tool_call", '<tool_call>{"na', "<thi", "<think>x</thin"])
def test_end_of_its_own_keeps_what_a_cut_drops(text: str) -> None:
    case = (hermes.HERMES, ReasoningFormat.THINK, Output(""))
    ended = parse_pieces(case, [text])
    assert (ended.reasoning_content or "") + (ended.content or "") == text.removeprefix("<think>")
    cut = parse_pieces(case, [text], was_cut=True)
    assert (cut.reasoning_content or cut.content or "") in ("", "a", "x")


@pytest.mark.parametrize(
    ("tools", "form"),
    [
        (mistral.MISTRAL, "[TOOL_CALLS]{}{{}}"),
        (hermes.HERMES, '<tool_call>{{"name": "{}", "arguments": {{}}}}</tool_call>'),
        (hermes.HERMES, '<tool_call>{{"{}": 1, "name": "add", "arguments": {{}}}}</tool_call>'),
    ],
)
def test_names_and_keys_longer_than_any_are_text(tools: ToolFormat, form: str) -> None:
    """The limit keeps the text small that a reader holds back."""
    for num_characters, is_call in ((60, True), (300, False)):
        text = form.format("a" * num_characters)
        message = parse_whole(ChatParser(tools, None, TOOLS), text, was_cut=False)
        assert bool(message.tool_calls) is is_call
        assert (message.content == text) is not is_call


@pytest.mark.parametrize(
    ("tools", "text", "is_unfinished"),
    [
        (mistral.MISTRAL, '[TOOL_CALLS]add{"a": 1', True),
        (mistral.MISTRAL, '[TOOL_CALLS]add{"a": 1}', False),
        (mistral.MISTRAL, "[TOOL_CALLS]add", False),
        (hermes.HERMES, '<tool_call>{"name": "add", "arguments": {', True),
        (hermes.HERMES, '<tool_call>{"name": "add", "argu', False),
        (hermes.HERMES, '<tool_call>{"name": "add", "arguments": {}}', False),
        (None, '{"name": "add", "arguments": {', False),
    ],
)
def test_parser_tells_whether_a_call_has_begun_and_not_ended(
    tools: ToolFormat | None, text: str, is_unfinished: bool
) -> None:
    parser = ChatParser(tools, None, TOOLS)
    parser.push(text)
    parser.finish(was_cut=True)
    assert (parser.first_unfinished_call == 0) is is_unfinished


def test_whole_tag_that_closes_nothing_is_text_in_a_cut_answer_too() -> None:
    for case in ((hermes.HERMES, None, Output("")), (hermes.HERMES, ReasoningFormat.THINK, Output(""))):
        assert parse_pieces(case, ["a </tool_call>"], was_cut=True).content == "a </tool_call>"
    for tag in ("<think>", "</think>"):
        assert parse_pieces(case, [f"a {tag}"], was_cut=True).content == f"a {tag}"


CALLS = {
    "deepseek_v3": "<｜tool▁call▁begin｜>function<｜tool▁sep｜>say\n```json\n{}\n```<｜tool▁call▁end｜>",
    "deepseek_v31": "<｜tool▁call▁begin｜>say<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
    "functools": 'functools[{"name": "say"}]',
    "minimax_m1": '<tool_calls>{"name": "say"}</tool_calls>',
    "minimax_m2": '<minimax:tool_call><invoke name="say"></invoke></minimax:tool_call>',
    "glm45": "<tool_call>say</tool_call>",
    "phi4_mini": '<|tool_call|>{"name": "say"}<|/tool_call|>',
    "command_r": '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "say"}]<|END_ACTION|>',
    "granite": '<|tool_call|>[{"name": "say"}]',
    "harmony": "<|channel|>commentary to=functions.say<|message|>{}<|call|>",
    "mistral": "[TOOL_CALLS]say{}",
    "hermes": '<tool_call>{"name": "say"}</tool_call>',
    "llama3_json": '{"name": "say"}\n',
    "json": '{"name": "say"}\n',
    "qwen3_coder": "<function=say></function>",
    "pythonic": "[say()]",
}


@pytest.mark.parametrize("tools", TOOL_FORMATS, ids=lambda tools: tools.name)
def test_ids_are_unique_and_fit_their_format(tools: ToolFormat) -> None:
    if tools is kimi_k2.KIMI_K2:
        return  # the ids count the calls of a conversation
    text = CALLS[tools.name]
    messages = [parse_whole(ChatParser(tools, None, TOOLS), text * 3, was_cut=False) for _ in range(50)]
    ids = [call.id for message in messages for call in message.tool_calls]
    assert len(ids) == len(set(ids)) == 150
    # Mistral's published templates refuse ids that are not nine letters and digits.
    pattern = r"[0-9a-zA-Z]{9}" if tools is mistral.MISTRAL else r"call_[0-9a-f]{24}"
    assert all(re.fullmatch(pattern, call_id) for call_id in ids)


def test_an_id_that_the_model_does_not_write_has_the_form_of_the_models_ids() -> None:
    text = "<|tool_call_begin|>say<|tool_call_argument_begin|>{}<|tool_call_end|>"
    message = parse_whole(ChatParser(kimi_k2.KIMI_K2, None, TOOLS), text * 2, was_cut=False)
    assert [(call.id, call.name) for call in message.tool_calls] == [
        ("functions.say:0", "say"),
        ("functions.say:1", "say"),
    ]


ADVERSARIAL = [
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>functions.say:0<|tool_call_argument_begin|>",
    "functools[",
    'functools[{"name": "say", "arguments": {',
    "<minimax:tool_call><invoke name=\"say\"><parameter name=\"text\">",
    "</invoke>\n",
    "<tool_call>say\n<arg_key>text</arg_key><arg_value>",
    "</arg_value>\n<arg_key>",
    "</tool_call",
    "</function>\n",
    "[add(a=({",
    "[add(a={'b' ",
    "<｜tool▁",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>say<｜tool▁sep｜>",
    "<｜tool▁call▁begin｜>say<｜tool▁sep｜>{<",
    "<|tool_call|>[{",
    '<|START_ACTION|>[{"tool_name": ',
    "<|",
    "<|channel|>",
    "<|channel|>commentary to=functions.say<|message|>",
    "<|channel|>commentary to=functions.say<|message|>{\"a",
    "<|start|>assistant<|channel|>analysis<|message|>",
    "<|message|><|end|>",
    " to=",
    "<",
    "<tool_call",
    "<tool_call>",
    '<tool_call>{"name": ',
    "<function=",
    "<tool_call>\n<function=say>\n<parameter=",
    "<function=say>\n<parameter=text>\n",
    "</parameter>\n<parameter=text>\n",
    "</parameter>\n<parameter=map>{\"",
    "</parameter",
    "<function=say></function>\n",
    '<tool_call>{"name": "add", "arguments": {"a": ',
    '<tool_call>{"name": "add", "arguments": {<</tool_cal',
    "<think>",
    "</think",
    "[TOOL_CALLS]",
    "[TOOL_CALLS]a[",
    "[TOOL_CALLS][{",
    "[TOOL_CALLS]add[CALL_ID]a[ARGS]",
    "[TOOL_CALLS]a{[",
    "[add",
    "[add(",
    "[add(a",
    "[add(a=",
    "[add(a='",
    "[add(a='''",
    "[add(a=[{",
    "[add(a=\"\\u12",
    "[add(a=1), ",
    "'\"",
    "<|python_start|>[",
    "<|python_end|>",
    "<|python_tag|>{",
    '{"name": "add", ',
    '{"name":"add","arguments":{',
    "[[{",
    "{",
    '{"',
    "\\",
    '"\\',
    " ",
    " \n;}",
    "[ ",
    '[{"name": "add"}, ',
    "{\"name\": \"add\", \"arguments\": \"{\\\"a",
    "\N{GRINNING FACE}<",
]  # fmt: skip


@pytest.mark.parametrize("tools", TOOL_FORMATS, ids=lambda tools: tools.name)
def test_adversarial_text_takes_steps_in_proportion_to_its_length(tools: ToolFormat) -> None:
    size = 1_000
    for unit in ADVERSARIAL:
        text = (unit * (size // len(unit) + 1))[:size]
        # The reader of reasoning hands its text on in pieces. Without reasoning the reader of tools gets the whole.
        for piece_size, reasoning in ((1, ReasoningFormat.THINK), (7, None), (size, None)):
            parser = ChatParser(tools, reasoning, TOOLS)
            for start in range(0, size, piece_size):
                parser.push(text[start : start + piece_size])
            parser.finish(was_cut=False)
            assert parser.num_steps <= MAX_STEPS_A_CHARACTER * size, (unit, piece_size)


@pytest.mark.parametrize("tools", TOOL_FORMATS, ids=lambda tools: tools.name)
def test_long_mixed_adversarial_text_takes_steps_in_proportion(tools: ToolFormat) -> None:
    random_source = random.Random(11)
    units: list[str] = []
    while sum(map(len, units)) < ADVERSARIAL_CHARACTERS:
        units.append(random_source.choice(ADVERSARIAL) * random_source.randint(1, 5000))
    text = "".join(units)[:ADVERSARIAL_CHARACTERS]
    parser = ChatParser(tools, ReasoningFormat.THINK, TOOLS)
    for start in range(0, len(text), 5):
        parser.push(text[start : start + 5])
    parser.finish(was_cut=False)
    assert parser.num_steps <= MAX_STEPS_A_CHARACTER * len(text)
