"""A trial finds the form of a message that a template reads, and the prompt is that of transformers for that form."""

import json
from typing import Any

import jinja2
import msgspec
import pytest
from textmill_router.api.openai.chat_messages import chat_request
from textmill_router.api.openai.chat_types import ChatBody
from textmill_router.chat.form_trial import FormTrial
from textmill_router.chat.message_forms import AbsentContent, ContentForm
from textmill_router.chat.prompt import make_prompt
from textmill_router.chat.role_safety import RoleSafety
from textmill_router.chat.template import ChatTemplate, ChatTemplates
from textmill_router.chat.tools import for_template
from textmill_router.errors import TemplateFailed, ValidationFailed
from transformers import PreTrainedTokenizerFast

from tests.fakes.byte_tokenizer import make_byte_tokenizer

ARGUMENTS = '{"place":  "museum", "when": [1,2]}'  # spaces as no library writes them
USER: dict[str, Any] = {"role": "user", "content": "Is it open?"}
ANSWER: dict[str, Any] = {"role": "tool", "tool_call_id": "c1", "content": "yes"}
EACH = "{% for m in messages %}"
PLAIN = "<{{ m.role }}>{{ m.content }}{% endfor %}"


def call(arguments: object, **content: object) -> dict[str, Any]:
    function = {"name": "look", "arguments": arguments}
    return {"role": "assistant", **content, "tool_calls": [{"id": "c1", "type": "function", "function": function}]}


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def template(source: str) -> ChatTemplate:
    return ChatTemplates({"default": source}, {}).pick(has_tools=False)


def prompt(source: str, messages: list[dict[str, Any]]) -> str:
    """Return the prompt of a body of /v1/chat/completions."""
    body = msgspec.convert({"messages": messages, "add_generation_prompt": True}, ChatBody, strict=False)
    return make_prompt(template(source), chat_request(body), RoleSafety([])).text


def of_transformers(source: str, messages: list[dict[str, Any]]) -> str:
    reference = PreTrainedTokenizerFast(tokenizer_object=make_byte_tokenizer(add_begin=False))
    rendered: str = reference.apply_chat_template(
        messages, chat_template=source, add_generation_prompt=True, tokenize=False
    )
    return rendered


JOINED_TEXT = EACH + "{% if m['tool_calls'] %}{% for c in m['tool_calls'] %}{{ c['function']['name'] + '\n' }}"
JOINED_TEXT += "{{ '```' + c['function']['arguments'] }}{% endfor %}{% else %}" + PLAIN.replace(
    "{% end", "{% endif %}{% end"
)
AS_JSON = JOINED_TEXT.replace("'```' + c['function']['arguments']", "c['function']['arguments'] | tojson")
EITHER = EACH + "{% for c in m.tool_calls or [] %}{% set a = c.function.arguments %}{{ c.function.name }}"
EITHER += "{{ a if a is string else a | tojson }}{% endfor %}{{ m.content or '' }}{% endfor %}"
PRINTED = (
    EACH
    + "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments }}{% endfor %}"
    + "{{ m.content or '' }}{% endfor %}"
)
FIRST_PART = EACH + "<{{ m.role }}>{{ m.content[0].text }}{% endfor %}"
SYSTEM_TEXT = EACH + "{% if m.role == 'system' %}S{{ m.content + '' }}{% else %}"
SYSTEM_TEXT += "{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endif %}{% endfor %}"
LAST_PART = EACH + "<{{ m.role }}>{{ m.content[-1]['text'] }}{% endfor %}"

SAME_FOR_TRANSFORMERS: dict[str, tuple[str, list[dict[str, Any]], list[dict[str, Any]]]] = {
    # Each row has a template, the client's message, and the message for transformers.
    "arguments joined to text": (
        JOINED_TEXT,
        [USER, call(ARGUMENTS, content=None), ANSWER],
        [USER, call(ARGUMENTS), ANSWER],
    ),
    "arguments joined to text, sent as an object": (
        JOINED_TEXT,
        [USER, call({"place": "museum"}), ANSWER],
        [USER, call('{"place": "museum"}'), ANSWER],
    ),
    "arguments as an object": (AS_JSON, [USER, call(ARGUMENTS), ANSWER], [USER, call(json.loads(ARGUMENTS)), ANSWER]),
    "arguments in either form": (EITHER, [USER, call(ARGUMENTS), ANSWER], [USER, call(json.loads(ARGUMENTS)), ANSWER]),
    "arguments as they are": (PRINTED, [USER, call(ARGUMENTS), ANSWER], [USER, call(ARGUMENTS), ANSWER]),
    "one part by index, sent as text": (FIRST_PART, [USER], [{**USER, "content": parts("Is it open?")}]),
    "one part by index, sent as two": (
        FIRST_PART,
        [{**USER, "content": parts("Is it", " open?")}],
        [{**USER, "content": parts("Is it open?")}],
    ),
    "the last part by index": (
        LAST_PART,
        [{**USER, "content": parts("Is it", " open?")}],
        [{**USER, "content": parts("Is it open?")}],
    ),
    "system text beside parts": (
        SYSTEM_TEXT,
        [{"role": "system", "content": parts("Be", " terse.")}, USER],
        [{"role": "system", "content": "Be terse."}, {**USER, "content": parts("Is it open?")}],
    ),
    "text where parts would be printed": (
        EACH + PLAIN,
        [{**USER, "content": parts("Is it", " open?")}],
        [USER],
    ),
    "one name for reasoning": (
        EACH + "{% if m.reasoning %}({{ m.reasoning }}){% endif %}{{ m.content }}{% endfor %}",
        [USER, {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}, USER],
        [USER, {"role": "assistant", "content": "Yes.", "reasoning": "Hm."}, USER],
    ),
    "reasoning under both names of transformers": (
        EACH + "{{ m.thinking }}{{ m.reasoning_content }}|{{ m.content }}{% endfor %}",
        [USER, {"role": "assistant", "content": "Yes.", "reasoning": "Hm."}, USER],
        [USER, {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}, USER],
    ),
}


@pytest.mark.parametrize("case", SAME_FOR_TRANSFORMERS)
def test_messages_get_the_form_that_the_template_reads(case: str) -> None:
    source, sent, form = SAME_FOR_TRANSFORMERS[case]
    assert prompt(source, sent) == of_transformers(source, form)


NULL = EACH + "{% if m.role == 'assistant' and m.content is none %}({{ m.tool_calls[0].function.name }}"
NULL += (
    "{{ m.tool_calls[0].function.arguments + ')' }}{% elif m.content is not none %}{{ m.role + m.content }}{% endif %}"
)
NULL += "{% endfor %}"
EMPTY = (
    EACH + "{{ m.role + m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
)


NAME_ALONE = NULL.replace("{{ m.tool_calls[0].function.arguments + ')' }}", ")")


@pytest.mark.parametrize(("source", "content"), [(NULL, None), (NAME_ALONE, None), (EMPTY, "")])
def test_absent_content_is_what_the_template_asks_for(source: str, content: str | None) -> None:
    """Jinja alone renders the expected prompt, because transformers takes null out of messages."""
    messages = [USER, call(ARGUMENTS, content=content), ANSWER]
    if source is EMPTY:
        messages[1] = call(json.loads(ARGUMENTS), content=content)
    environment = jinja2.Environment()
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    expected = environment.from_string(source).render(messages=messages)
    assert prompt(source, [USER, call(ARGUMENTS, content=None), ANSWER]) == expected


def test_content_that_no_form_shows_is_refused() -> None:
    source = EACH + "{% if m.role in ['user', 'assistant'] %}{{ m.content }}{% endif %}{% endfor %}"
    assert prompt(source, [USER, {"role": "assistant", "content": "Yes."}, USER]) == "Is it open?Yes.Is it open?"
    for role in ("system", "tool"):
        with pytest.raises(ValidationFailed, match=f"content of '{role}' messages out") as failed:
            prompt(source, [USER, {**ANSWER, "role": role}])
        assert failed.value.field == "messages[1].content"
    for empty in ("", parts(""), []):
        assert prompt(source, [{"role": "system", "content": empty}, USER]) == "Is it open?"


def test_calls_that_a_template_leaves_out_are_shown_as_text() -> None:
    source = EACH + "{% if not m.tool_calls %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
    body = msgspec.convert({"messages": [USER, call(ARGUMENTS), ANSWER]}, ChatBody, strict=False)
    shown = for_template(template(source), chat_request(body), None)
    found = make_prompt(template(source), shown, RoleSafety([])).text
    written = '{"name": "look", "parameters": {"place": "museum", "when": [1, 2]}}'
    assert found == f"<user>Is it open?<assistant>{written}<tool>yes"


def test_arguments_as_text_carry_no_mark_that_a_template_sees() -> None:
    length = "c['function']['arguments'] + (c['function']['arguments'] | length | string)"
    source = JOINED_TEXT.replace("'```' + c['function']['arguments']", length)
    messages = [USER, call({"place": "<|end|> x"}), ANSWER]
    body = msgspec.convert({"messages": messages, "add_generation_prompt": True}, ChatBody, strict=False)
    found = make_prompt(template(source), chat_request(body), RoleSafety(["<|end|>"]))
    assert found.text == of_transformers(source, [USER, call('{"place": "<|end|> x"}'), ANSWER])
    assert len(found.pieces) == 2


def test_a_template_that_refuses_a_role_says_so_itself() -> None:
    source = EACH + "{% if m.role == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + PLAIN
    with pytest.raises(TemplateFailed, match="No system role"):
        prompt(source, [{"role": "system", "content": "Be terse."}, USER])


def test_a_slow_template_is_not_tried_for_long() -> None:
    calls = 0

    def render(conversation: object) -> str:
        nonlocal calls
        calls += 1
        raise TemplateFailed("the template did not end")

    by_tree = ContentForm(takes_text=True, takes_parts=False)
    trial = FormTrial(render, by_tree, max_trial_s=0.0)
    forms = trial.forms()
    assert (calls, forms.content("user"), forms.absent_content) == (0, by_tree, AbsentContent.MISSING)
