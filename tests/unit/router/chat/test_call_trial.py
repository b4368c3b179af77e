"""The templates of the known families show calls that are read back; others are told at start."""

import pytest
from textmill_router.chat.answer_form import FormatFlags
from textmill_router.chat.call_trial import reads_own_calls, warn_of_unread_calls
from textmill_router.chat.template import ChatTemplates

from tests.fakes.chat_templates import NAMES, template_source

MESSAGES = (
    "{{ tools }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}{% endfor %}"
)
# A name and arguments in a fence between the tags of Hermes.
FENCED = "<tool_call>{{ c.function.name }}\n```json\n{{ c.function.arguments | tojson }}\n```</tool_call>"
HERMES = '<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>'
UNKNOWN_TAG = '<CALL>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</CALL>'
ONLY_VALUES = "<tool_call>{{ c.function.name }}({{ c.function.arguments.place }})</tool_call>"


# `helpers` teaches no format.
KNOWN = [name for name in NAMES if "tools" in template_source(name) and name != "helpers"]


def templates(source: str) -> ChatTemplates:
    return ChatTemplates({"default": source}, {"bos_token": "<s>", "eos_token": "</s>"})


def shown_as(form: str) -> str:
    return MESSAGES.replace("CALL", form)


@pytest.mark.parametrize("name", KNOWN)
def test_calls_that_the_known_templates_show_are_read_back(name: str, caplog: pytest.LogCaptureFixture) -> None:
    found = templates(template_source(name))
    if "tool_calls" in template_source(name):
        assert reads_own_calls(found.pick(has_tools=True)) is True
    warn_of_unread_calls(found, FormatFlags())
    assert not caplog.records


@pytest.mark.parametrize(
    ("source", "flag", "warns"),
    [
        # templates that show no calls: the marks in their source decide
        ("{{ tools }} <foreign_call>", None, True),
        ("{{ tools }} <foreign_call>", "json", False),
        ("{{ tools }} <tool_call>", None, False),
        ("{{ messages }} <foreign_call>", None, False),
        # templates that show calls
        (shown_as(HERMES), None, False),
        (shown_as(UNKNOWN_TAG), None, False),  # read as plain JSON
        (shown_as(FENCED), None, True),
        (shown_as(FENCED), "hermes", False),
        (shown_as(ONLY_VALUES), None, True),
    ],
)
def test_calls_that_no_reader_knows_are_told_at_start(
    caplog: pytest.LogCaptureFixture, source: str, flag: str | None, warns: bool
) -> None:
    warn_of_unread_calls(templates(source), FormatFlags(tool_call_parser=flag))
    assert ["no known format" in record.getMessage() for record in caplog.records] == [True] * warns
    assert all("hermes" in record.__dict__["known_formats"] for record in caplog.records)
