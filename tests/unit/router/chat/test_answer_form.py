"""How answers are read: by the format of template or flag, by the end of the prompt, with one call or several."""

import pytest
from textmill_router.chat.answer_form import AnswerForm, FormatFlags, answer_form
from textmill_router.chat.prompt import ChatRequest, make_prompt
from textmill_router.chat.role_safety import RoleSafety
from textmill_router.chat.template import ChatTemplates
from textmill_router.chat.tools import ToolChoice
from textmill_router.grammar.tool_grammar import ToolSpec
from textmill_router.parsers.deltas import collect

THINKS = "{{ messages[0].content }}{# <think></think> #}"
FRAMES = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{# <think></think> #}"
)
USER = ("user", "hi")
CALLS = ["f", "g"]


def form_of(source: str, tools: ToolChoice | None = None, flags: FormatFlags | None = None) -> AnswerForm:
    template = ChatTemplates({"default": source}, {}).pick(has_tools=False)
    return answer_form(template, tools, flags or FormatFlags())


def choice(*, is_parallel: bool) -> ToolChoice:
    return ToolChoice(shown=[], specs=tuple(ToolSpec(name) for name in CALLS), is_parallel=is_parallel)


@pytest.mark.parametrize(
    ("prompt", "text", "reasoning", "content"),
    [
        ("hi", "<think>a</think>b", "a", "b"),
        ("hi<think>\n", "a</think>b", "a", "b"),
        ("hi<think></think>\n", "ab", None, "ab"),
    ],
)
def test_the_prompt_says_whether_reasoning_has_begun(prompt: str, text: str, reasoning: str, content: str) -> None:
    reader = form_of(THINKS).behind(prompt).new_reader()
    message = collect([*reader.push(text), *reader.finish(was_cut=False)])
    assert (message.reasoning_content, message.content) == (reasoning, content)


def test_an_answer_without_formats_is_plain() -> None:
    assert form_of("{{ messages[0].content }}").is_plain
    assert not form_of(THINKS).is_plain
    assert form_of(THINKS).without_reasoning().is_plain
    assert not form_of("x", flags=FormatFlags(reasoning_parser="mistral")).is_plain


@pytest.mark.parametrize(("is_parallel", "names"), [(True, CALLS), (False, CALLS[:1])])
def test_calls_behind_the_first_are_left_out_unless_they_may_be_parallel(is_parallel: bool, names: list[str]) -> None:
    text = "".join(f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>' for name in CALLS)
    reader = form_of("x", choice(is_parallel=is_parallel), FormatFlags(tool_call_parser="hermes")).new_reader()
    message = collect([*reader.push(text), *reader.finish(was_cut=False)])
    assert [call.name for call in message.tool_calls] == names


@pytest.mark.parametrize(
    ("messages", "text", "reasoning", "content"),
    [
        # The answer's part of the prompt ends inside the reasoning that the client began.
        ([USER, ("assistant", "<think>\nLet me")], " see.</think>b", "see.", "b"),
        ([USER, ("assistant", "<think>a</think>\n\nThe")], " end", None, " end"),
        ([USER, ("assistant", "<think>a</think>b<think>c")], "d</think>e", "d", "e"),
        # Tags of earlier messages open nothing.
        ([("user", "What does <think> mean?")], "a</think>b", None, "a</think>b"),
        ([("user", "What does <think> mean?")], "<think>a</think>b", "a", "b"),
        ([USER, ("assistant", "<think>a"), ("user", "go on")], "b", None, "b"),
        ([USER, ("assistant", "Well")], ", b", None, ", b"),
    ],
)
def test_the_last_tag_of_the_answers_part_tells_whether_reasoning_is_open(
    messages: list[tuple[str, str]], text: str, reasoning: str | None, content: str
) -> None:
    template = ChatTemplates({"default": FRAMES}, {}).pick(has_tools=False)
    chat = ChatRequest([{"role": role, "content": said} for role, said in messages])
    prompt = make_prompt(template, chat, RoleSafety([], ["<think>", "</think>"]))
    form = answer_form(template, None, FormatFlags()).behind(prompt.text, prompt.begun)
    reader = form.new_reader()
    message = collect([*reader.push(text), *reader.finish(was_cut=False)])
    assert (message.reasoning_content, message.content) == (reasoning, content)
    assert form.has_reasoned == prompt.text.endswith("</think>\n\nThe")
