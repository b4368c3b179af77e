"""Which tools a body lets the model call, and which of them it must call."""

from typing import Any

import msgspec
import pytest
from textmill_router.api.openai.chat_tools import tool_choice_of
from textmill_router.api.openai.chat_types import ChatBody
from textmill_router.chat.tools import ToolChoice
from textmill_router.errors import ToolError, ValidationFailed

KEYWORDS = ("auto", "none", "required")
NAMES = (*KEYWORDS, "weather", "time")
TOOLS = [{"type": "function", "function": {"name": name}} for name in NAMES]


def choice_of(choice: object, tools: list[dict[str, Any]] | None = TOOLS) -> ToolChoice | None:
    body = {"messages": [], "tools": tools, "tool_choice": choice}
    return tool_choice_of(msgspec.convert(body, ChatBody))


def names_of(choice: ToolChoice | None) -> list[str]:
    assert choice is not None
    return [spec.name for spec in choice.specs]


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape", [function, lambda name: {"FunctionName": name}, lambda name: {"name": name}], ids=["openai", "tgi", "bare"]
)
def test_an_object_names_a_tool_whatever_its_name(shape: Any, name: str) -> None:
    choice = choice_of(shape(name))
    assert names_of(choice) == [name]
    assert choice is not None
    assert choice.is_required
    assert not choice.is_parallel
    assert [shown["function"]["name"] for shown in choice.shown] == list(NAMES)


def test_a_word_is_a_keyword_before_it_is_a_name() -> None:
    assert choice_of("none") is None
    for word, is_required in (("auto", False), ("required", True), (None, False)):
        choice = choice_of(word)
        assert names_of(choice) == list(NAMES)
        assert choice is not None
        assert choice.is_required is is_required
        assert choice.is_parallel
    assert names_of(choice_of("time")) == ["time"]


@pytest.mark.parametrize("tools", [None, []])
def test_a_choice_without_tools_is_refused(tools: list[dict[str, Any]] | None) -> None:
    """OpenAI: "'tool_choice' is only allowed when 'tools' are specified"; `none` is its default without tools."""
    for choice in ("auto", "required", "weather", function("none"), {"type": "allowed_tools", "allowed_tools": {}}):
        with pytest.raises(ValidationFailed, match="tool_choice") as caught:
            choice_of(choice, tools)
        assert str(caught.value.field).startswith("tool_choice")
    assert choice_of("none", tools) is None
    assert choice_of(None, tools) is None


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_narrow_the_calls_and_not_the_prompt(mode: str) -> None:
    """As in OpenAI's reference of `allowed_tools`."""

    def allowed(*names: str) -> ToolChoice:
        tools = [function(name) for name in names]
        choice = choice_of({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}})
        assert choice is not None
        return choice

    choice = allowed("time", "none")
    assert names_of(choice) == ["none", "time"]
    assert choice.is_narrowed
    assert choice.is_parallel
    assert choice.is_required is (mode == "required")
    assert [shown["function"]["name"] for shown in choice.shown] == list(NAMES)
    assert not allowed(*NAMES).is_narrowed
    with pytest.raises(ToolError, match="'rain'"):
        allowed("time", "rain")


@pytest.mark.parametrize(
    "allowed",
    [
        None,
        {"mode": "auto", "tools": []},
        {"mode": "none", "tools": [function("time")]},
        {"tools": [function("time")]},
        {"mode": "auto", "tools": [function("time"), {"type": "function"}]},
        {"mode": "auto", "tools": ["time"]},
    ],
)
def test_allowed_tools_of_another_shape_are_refused(allowed: object) -> None:
    with pytest.raises(ValidationFailed, match="allowed_tools"):
        choice_of({"type": "allowed_tools", "allowed_tools": allowed})


@pytest.mark.parametrize("choice", [5, ["time"], {"type": "function"}, {"function": {"name": 5}}, {"name": True}])
def test_a_choice_of_another_shape_is_refused(choice: object) -> None:
    with pytest.raises(ValidationFailed, match="tool_choice"):
        choice_of(choice)
