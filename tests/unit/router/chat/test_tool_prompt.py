"""Tools in words, in TGI's layout."""

from textmill_router.chat.tool_prompt import DEFAULT_TOOL_PROMPT, tool_words

TOOL = {"type": "function", "function": {"name": "wetter", "description": "für Städte", "parameters": {}}}
SCHEMA = '[{"type": "function", "function": {"name": "wetter", "description": "für Städte", "parameters": {}}}]'


def test_schemas_and_prompt_follow_a_rule() -> None:
    assert tool_words([TOOL], "Call it.", template_takes_tools=False) == f"\n---\n{SCHEMA}\nCall it."


def test_absent_and_empty_prompts_are_the_default() -> None:
    for absent in (None, ""):
        assert tool_words([TOOL], absent, template_takes_tools=False) == f"\n---\n{SCHEMA}\n{DEFAULT_TOOL_PROMPT}"


def test_template_that_takes_tools_gets_only_what_the_request_says() -> None:
    assert tool_words([TOOL], "Call it.", template_takes_tools=True) == "\n---\nCall it."
    assert tool_words([TOOL], None, template_takes_tools=True) == ""
