"""What the grammars of answers in channels let through, and that the reader reads it back."""

import json

import pytest
from textmill_router.errors import ValidationFailed
from textmill_router.grammar.channel_grammar import ChannelForm, channel_grammar
from textmill_router.grammar.request_forms import AskedGrammar, AskedKind
from textmill_router.parsers.chat_parser import ChatParser
from textmill_router.parsers.tools.harmony import HARMONY
from textmill_router.parsers.tools.tool_format import ToolSpec

from tests.fakes.chat_outputs import parse_whole
from tests.fakes.grammar_judge import CHANNEL_MARKS, Judge, ids_of

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
STRICT = [
    ToolSpec("weather", CITY, is_strict=True),
    ToolSpec("say", {"type": "object", "additionalProperties": True}),
]
ASKED = AskedGrammar(AskedKind.JSON_SCHEMA, json.dumps(CITY))
WEATHER, WRONG = '{"city": "Oslo"}', '{"town": "Oslo"}'
NEXT = "<|end|><|start|>assistant"
THOUGHT = f"<|channel|>analysis<|message|>Is it {{1}} </b>?{NEXT}"
PLAN = f"<|channel|>commentary<|message|>I look.{NEXT}"
FINAL = "<|channel|>final<|message|>"
each_vocabulary = pytest.mark.parametrize("ids", [ids_of(*CHANNEL_MARKS), {}], ids=["tokens", "letters"])


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def call(name: str, arguments: str) -> str:
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}"


def shown_call(name: str, arguments: str) -> str:
    """With the recipient first, as the published template shows calls."""
    return f" to=functions.{name}<|channel|>commentary json<|message|>{arguments}"


def follows(judge: Judge, ids: dict[str, int], text: str, tools: list[ToolSpec] = STRICT, **more: object) -> bool:
    begun = str(more.pop("begun", "assistant"))
    content = ASKED if more.pop("has_content", False) else None
    is_required = bool(more.get("is_required"))
    grammar = channel_grammar(content, tools, ChannelForm(ids, begun), is_required=is_required)
    assert grammar is not None
    return judge.follows(ids, grammar, text)


@each_vocabulary
def test_required_call_follows_thoughts_alone(judge: Judge, ids: dict[str, int]) -> None:
    for text in (call("weather", WEATHER), shown_call("weather", WEATHER), call("say", '{"x": 1}')):
        for before in ("", THOUGHT, THOUGHT * 2):
            assert follows(judge, ids, before + text, is_required=True)
            assert not follows(judge, ids, before + text[:-1], is_required=True)
    for text in (call("weather", WRONG), call("other", "{}"), f"{FINAL}Hello.", "", THOUGHT, PLAN + call("say", "{}")):
        assert not follows(judge, ids, text, is_required=True), text


@each_vocabulary
def test_strict_tools_leave_text_free(judge: Judge, ids: dict[str, int]) -> None:
    for text in (f"{FINAL}Hello. {{1}}", FINAL, call("weather", WEATHER), call("say", '{"x": 1}')):
        for before in ("", THOUGHT, THOUGHT + PLAN, PLAN):
            assert follows(judge, ids, before + text)
    for text in (call("weather", WRONG), shown_call("weather", WRONG), call("other", "{}"), "Hello."):
        assert not follows(judge, ids, text), text
    assert follows(judge, ids, call("weather", WRONG), [ToolSpec("weather", CITY), ToolSpec("b", CITY, is_strict=True)])


@each_vocabulary
def test_content_is_that_of_the_last_message(judge: Judge, ids: dict[str, int]) -> None:
    for before in ("", THOUGHT):
        assert follows(judge, ids, f"{before}{FINAL}{WEATHER}", [], has_content=True)
        assert follows(judge, ids, f"{before}{FINAL}{WEATHER}", has_content=True)
        assert follows(judge, ids, before + call("say", "{}"), has_content=True)
        assert not follows(judge, ids, f"{before}{FINAL}{WRONG}", [], has_content=True)
        assert not follows(judge, ids, before + call("say", "{}"), [], has_content=True)
    assert not follows(judge, ids, f"{PLAN}{FINAL}{WEATHER}", [], has_content=True)
    assert not follows(judge, ids, WEATHER, [], has_content=True)


@each_vocabulary
def test_grammar_begins_where_the_prompt_ends(judge: Judge, ids: dict[str, int]) -> None:
    final = f"{FINAL}{WEATHER}"
    for begun, good, bad in (
        ("assistant<|channel|>analysis<|message|>Hm", f" so{NEXT}{final}", final),
        ("assistant<|channel|>final<|message|>", WEATHER, final),
        ("user<|message|>hi<|end|>", f"<|start|>assistant{final}", final),
    ):
        assert follows(judge, ids, good, [], has_content=True, begun=begun)
        assert not follows(judge, ids, bad, [], has_content=True, begun=begun)


def test_marks_in_letters_do_not_get_past_marks_that_are_tokens(judge: Judge) -> None:
    ids = ids_of(*CHANNEL_MARKS)
    grammar = channel_grammar(None, STRICT, ChannelForm(ids))
    assert grammar is not None
    matcher = judge.matcher(ids, grammar)
    assert matcher.consume_tokens(judge.library.encode(f"{FINAL}so").ids)
    letters = [token_id for char in "<|call|>" for token_id in judge.library.encode(char).ids]
    assert matcher.consume_tokens(letters[:-1])
    assert not matcher.consume_token(letters[-1])


@pytest.mark.parametrize("text", [call("weather", WEATHER), shown_call("weather", WEATHER)])
def test_reader_reads_what_the_grammar_makes(text: str) -> None:
    message = parse_whole(ChatParser(HARMONY, None, STRICT), THOUGHT + text, was_cut=False)
    assert [(one.name, one.arguments) for one in message.tool_calls] == [("weather", WEATHER)]
    assert (message.content, message.reasoning_content) == (None, "Is it {1} </b>?")


def test_nothing_is_enforced_without_need() -> None:
    assert channel_grammar(None, [ToolSpec("weather", CITY)], ChannelForm({})) is None
    with pytest.raises(ValidationFailed, match="'array'"):
        channel_grammar(None, [ToolSpec("a", {"type": "array"})], ChannelForm({}), is_required=True)
    with pytest.raises(ValidationFailed, match="a space or"):
        channel_grammar(None, [ToolSpec("a b")], ChannelForm({}), is_required=True)
