"""Prompts equal transformers' `apply_chat_template`; the choice of the template; the messages of failures."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from textmill_router.chat.content_form import content_form
from textmill_router.chat.prompt import ChatRequest, make_prompt
from textmill_router.chat.role_safety import RoleSafety
from textmill_router.chat.sandbox import ChatSandbox
from textmill_router.chat.template import ChatTemplate, ChatTemplates
from textmill_router.chat.template_files import load_chat_templates
from textmill_router.errors import TemplateFailed, ValidationFailed
from textmill_router.text.tokenizer_files import TokenizerError

from tests.fakes.chat_families import Family
from tests.fakes.chat_templates import (
    NAMES,
)

USER = {"role": "user", "content": "What is the weather in Paris?"}
SYSTEM = {"role": "system", "content": "  You are terse.\n"}
ASSISTANT = {"role": "assistant", "content": " It rains. \n"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather of a <city> & "more", naïve é 東京',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {
    "id": "abcdef123",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "東京", "days": [1, 2.5, None, True], "q": 'a"b\\n'}},
}
ANSWER = {"role": "tool", "tool_call_id": "abcdef123", "name": "get_weather", "content": '{"rain": "yes"}'}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "user": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {"messages": [USER, ASSISTANT, {"role": "user", "content": "And  tomorrow?  "}]},
    "system and turns": {"messages": [SYSTEM, USER, ASSISTANT, USER]},
    "no generation prompt": {"messages": [USER, ASSISTANT, USER], "add_generation_prompt": False},
    "unicode": {"messages": [{"role": "user", "content": "naïve café — 東京 😀 \u200d ⟨x⟩ ‮abc"}]},
    "empty": {"messages": [{"role": "user", "content": ""}]},
    "markup": {"messages": [{"role": "user", "content": "{{ 1 + 1 }} {% if %} <b>&amp;</b> \\n"}]},
    "long": {"messages": [USER, ASSISTANT] * 20 + [USER]},
    "tools": {"messages": [USER], "tools": [TOOL]},
    "system and tools": {"messages": [SYSTEM, USER], "tools": [TOOL, TOOL]},
    "tool answer": {
        "messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, ANSWER],
        "tools": [TOOL],
    },
    "two tool answers": {
        "messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}, ANSWER, ANSWER],
        "tools": [TOOL],
    },
    "content beside a call": {
        "messages": [
            USER,
            {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]},
            ANSWER,
            ASSISTANT,
            USER,
        ]
    },
    "thinking": {"messages": [USER, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}, USER]},
    "reasoning": {"messages": [USER, {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}, USER]},
    "variables": {"messages": [USER], "variables": {"enable_thinking": False, "custom": "x", "date_string": "1 May"}},
    "two users": {"messages": [USER, USER]},
    "named": {"messages": [{"role": "user", "content": "stop", "name": "Ann"}, USER]},
    "skip and stop": {"messages": [{"role": "user", "content": "skip"}, USER, {"role": "user", "content": "stop"}]},
    "goes on": {"messages": [USER, {"role": "assistant", "content": "It is"}], "continue_final_message": True},
    "tags of the model": {
        "messages": [
            {"role": "system", "content": "Think inside <think></think>, call with <tool_call>."},
            USER,
            {"role": "assistant", "content": "<think>\n\nHm."},
        ],
        "continue_final_message": True,
    },
    "ordinary tokens": {"messages": [{"role": "user", "content": "<b>x</b>\n\n\ny    z"}]},
    "goes on after a space": {
        "messages": [USER, {"role": "assistant", "content": "It is "}],
        "continue_final_message": True,
    },
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_prompt_is_that_of_transformers(families: dict[str, Family], name: str, conversation: str) -> None:
    """Text and ids are equal, and where transformers' rendering fails, ours fails with an equal message."""
    family, chat = families[name], CONVERSATIONS[conversation]
    refusal = None
    try:
        expected = family.reference_prompt(tokenize=False, **chat)
    except (jinja2.TemplateError, TypeError) as error:
        refusal = str(error)
    except ValueError:  # the template leaves out the message to be continued
        refusal = "final message"
    if name == "zephyr" and any(message["role"] == "tool" for message in chat["messages"]):
        assert refusal is not None or '"rain"' not in expected  # transformers' prompt lacks the tool's answer
        with pytest.raises(ValidationFailed, match="content of 'tool' messages out"):
            family.pieces(**chat)
        return
    if refusal is not None:
        with pytest.raises(TemplateFailed) as failed:
            family.pieces(**chat)
        assert refusal in str(failed.value)
        return
    assert "".join(family.pieces(**chat)) == expected
    assert family.ids(**chat) == family.reference_prompt(tokenize=True, **chat)


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


PART_MESSAGES = [
    {"role": "system", "content": parts(" Be terse. ")},
    {"role": "user", "content": parts("What is ", " this? ")},
    {"role": "assistant", "content": parts("A bird.")},
    {"role": "user", "content": parts("And ", "that 東京?")},
]


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_parts_are_given_to_templates_that_read_them(families: dict[str, Family], name: str, goes_on: bool) -> None:
    """Templates get parts as from transformers, but templates that read one text get the parts joined."""
    family = families[name]
    messages = [*PART_MESSAGES, {"role": "assistant", "content": parts("It", " is")}] if goes_on else PART_MESSAGES
    reads_parts = name in ("gemma3", "qwen2_vl")
    chat = {"messages": messages, "continue_final_message": goes_on}
    joined = [{**message, "content": "".join(part["text"] for part in message["content"])} for message in messages]
    try:
        expected = family.reference_prompt(tokenize=False, **{**chat, "messages": messages if reads_parts else joined})
    except jinja2.TemplateError as error:
        with pytest.raises(TemplateFailed, match=str(error)):
            family.pieces(**chat)
        return
    assert "".join(family.pieces(**chat)) == expected


@pytest.mark.parametrize(
    ("source", "takes_text", "takes_parts"),
    [
        ("{{ m.content }}", True, False),
        ("{% for line in m.content.split('\n') %}{{ line }}{% endfor %}", True, False),
        ("{% for call in m.tool_calls %}{% if call is string %}{% endif %}{% endfor %}", True, False),
        ("{% for part in m['content'] %}{{ part.text }}{% endfor %}", False, True),
        ("{% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}", False, True),
        ("{% if m.content is string %}{% else %}{% for p in m.content %}{{ p }}{% endfor %}{% endif %}", True, True),
        ("{% if m.content is not string %}{% for p in m.content %}{{ p }}{% endfor %}{% endif %}", True, True),
        ("{% set c = m['content'] %}{% if c is string %}{% endif %}{% for p in c %}{{ p }}{% endfor %}", True, True),
        ("{% set c = m['content'] %}{% if x is string %}{% endif %}{% for p in c %}{{ p }}{% endfor %}", False, True),
        (
            "{% macro show(c) %}{% if c is string %}{{ c }}{% else %}{% for p in c %}{{ p }}{% endfor %}{% endif %}"
            "{% endmacro %}{{ show(m.content) }}",
            True,
            True,
        ),
    ],
)
def test_template_tells_the_form_of_contents(source: str, takes_text: bool, takes_parts: bool) -> None:
    form = content_form(ChatSandbox().parse(source))
    assert (form.takes_text, form.takes_parts) == (takes_text, takes_parts)


def test_text_is_a_part_for_templates_that_read_nothing_else() -> None:
    source = (
        "{% for m in messages %}{% for part in m.content %}[{{ part.type }}:{{ part.text }}]{% endfor %}{% endfor %}"
    )
    template = ChatTemplate(ChatSandbox(), source, {})
    for content in ("What?", parts("What?")):
        chat = ChatRequest(messages=[{"role": "user", "content": content}])
        assert make_prompt(template, chat, RoleSafety([])).text == "[text:What?]"
    final = {"role": "assistant", "content": "It is"}
    assert make_prompt(template, ChatRequest(messages=[USER, final]), RoleSafety([])).text.endswith("[text:It is")
    # Special tokens that are words do not change the names of a part that contain them.
    chat = ChatRequest(messages=[{"role": "user", "content": parts("What?", "e")}])
    assert make_prompt(template, chat, RoleSafety(["tr_TR", "en_XX"])).text == "[text:What?][text:e]"


def test_most_conversations_render(families: dict[str, Family]) -> None:
    """Most rows of the table above compare prompts, and few compare failures."""
    rendered = 0
    for family in families.values():
        for chat in CONVERSATIONS.values():
            try:
                family.pieces(**chat)
            except (TemplateFailed, ValidationFailed):
                continue
            rendered += 1
    assert rendered > 0.75 * len(NAMES) * len(CONVERSATIONS)


def test_developer_is_system_where_the_template_knows_no_other(families: dict[str, Family]) -> None:
    developer = {"role": "developer", "content": "Be terse."}
    [prompt] = families["qwen2_5"].pieces(messages=[developer, USER])
    assert prompt.startswith("<|im_start|>system\nBe terse.<|im_end|>")
    knows = ChatTemplate(ChatSandbox(), "{% if messages[0].role == 'developer' %}D{% endif %}", {})
    assert make_prompt(knows, ChatRequest(messages=[developer]), RoleSafety([])).text == "D"


def test_final_assistant_message_goes_on_unless_told_otherwise(families: dict[str, Family]) -> None:
    family = families["qwen2_5"]
    messages = [USER, {"role": "assistant", "content": "It is"}]
    [prompt] = family.pieces(messages=messages)
    assert prompt.endswith("assistant\nIt is")
    [prompt] = family.pieces(messages=messages, continue_final_message=False)
    assert prompt.endswith("It is<|im_end|>\n<|im_start|>assistant\n")
    [prompt] = family.pieces(messages=messages, add_generation_prompt=True)
    assert prompt.endswith("It is<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(ValidationFailed, match="exclude"):
        family.pieces(messages=messages, add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(TemplateFailed, match="final message"):
        make_prompt(ChatTemplate(ChatSandbox(), "nothing", {}), ChatRequest(messages=messages), RoleSafety([]))


def test_failures_of_a_template_are_told() -> None:
    for source, message in (
        ("{{ raise_exception('Only one system message') }}", "Only one system message"),
        ("{{ messages[7].content }}", "list object has no element 7"),
        ("{{ 'a' + none }}", "TypeError"),
        ("{{ strftime_now() }}", "TypeError"),
    ):
        template = ChatTemplate(ChatSandbox(), source, {})
        with pytest.raises(TemplateFailed, match=message):
            make_prompt(template, ChatRequest(messages=[USER]), RoleSafety([]))
    with pytest.raises(TemplateFailed, match="line 2"):
        ChatTemplate(ChatSandbox(), "a\n{% if %}", {})


def test_huge_template_is_refused() -> None:
    with pytest.raises(TemplateFailed, match="1000001 characters"):
        ChatTemplate(ChatSandbox(), "a" * 1_000_001, {})


def test_tool_use_template_is_taken_when_there_are_tools() -> None:
    templates = ChatTemplates({"default": "d", "tool_use": "t"}, {})
    assert templates.pick(has_tools=False).source == "d"
    assert templates.pick(has_tools=True).source == "t"
    assert ChatTemplates({"default": "d"}, {}).pick(has_tools=True).source == "d"
    with pytest.raises(TemplateFailed, match="found rag"):
        ChatTemplates({"rag": "r"}, {}).pick(has_tools=False)
    with pytest.raises(TemplateFailed, match="found none"):
        ChatTemplates({}, {}).pick(has_tools=False)
    with pytest.raises(TemplateFailed, match="line 1"):
        ChatTemplates({"default": "{% x"}, {}).pick(has_tools=False)


def test_sources_are_taken_in_order(tmp_path: Path) -> None:
    def source() -> str:
        return load_chat_templates(tmp_path).pick(has_tools=False).source

    with pytest.raises(TemplateFailed):
        source()
    (tmp_path / "processor_config.json").write_text(json.dumps({"chat_template": "processor"}))
    assert source() == "processor"
    named = [{"name": "default", "template": "config"}, {"name": "tool_use", "template": "config tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert source() == "config"
    assert load_chat_templates(tmp_path).pick(has_tools=True).source == "config tools"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert source() == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert source() == "jinja"
    assert load_chat_templates(tmp_path).pick(has_tools=True).source == "jinja"
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"chat_template": "given {{ bos_token }}", "bos_token": {"content": "<s>"}}))
    template = load_chat_templates(tmp_path, given).pick(has_tools=False)
    assert make_prompt(template, ChatRequest(messages=[USER]), RoleSafety([])).text == "given <s>"
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<map>"}))
    template = load_chat_templates(tmp_path, given).pick(has_tools=False)
    assert make_prompt(template, ChatRequest(messages=[USER]), RoleSafety([])).text == "given <s>"
    with pytest.raises(TokenizerError, match=r"missing\.json"):
        load_chat_templates(tmp_path, tmp_path / "missing.json")


@pytest.mark.parametrize("default", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_further_templates_lie_beside_the_default_wherever_that_stands(tmp_path: Path, default: str) -> None:
    content = "default" if default.endswith(".jinja") else json.dumps({"chat_template": "default"})
    (tmp_path / default).write_text(content)
    folder = tmp_path / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("tools")
    (folder / "rag.jinja").write_text("rag")
    templates = load_chat_templates(tmp_path)
    assert templates.pick(has_tools=False).source == "default"
    assert templates.pick(has_tools=True).source == "tools"
    assert set(templates.sources) == {"default", "tools", "rag"}
