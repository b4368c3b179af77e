"""`tools` and `tool_choice`: what the template shows, how the answer is read, what is enforced."""

import json
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from textmill_router.api.openai.chat_types import ChatBody, DeclaredFunction, DeclaredTool
from textmill_router.chat.message_content import text_of, with_more_text
from textmill_router.chat.prompt import ChatRequest
from textmill_router.chat.template import ChatTemplate, Message
from textmill_router.chat.tool_prompt import tool_words
from textmill_router.errors import ToolError, ValidationFailed
from textmill_router.grammar.reasoning_grammar import ReasoningForm
from textmill_router.grammar.tool_grammar import OutputForm, ToolSpec, tool_grammar
from textmill_router.parsers.chat_parser import ChatParser
from textmill_router.parsers.deltas import Delta, ToolArguments, ToolCallStart
from textmill_router.parsers.formats import (
    ReasoningFormat,
    ToolFormat,
    has_ended_reasoning,
    markers_of,
    reasoning_format_of,
    starts_in_reasoning,
    tool_format_of,
)
from textmill_router.request import Grammar
from textmill_router.settings import Settings
from textmill_router.text.tokenization import Tokenizer

_TOOLS = list[DeclaredTool]


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Tools that may be called; none when the choice is `none`."""

    shown: list[dict[str, Any]]  # as templates take them
    specs: tuple[ToolSpec, ...]
    chosen: str | None = None  # the one that must be called
    is_required: bool = False
    is_parallel: bool = True
    prompt: str | None = None  # the request's own


def tool_choice_of(body: ChatBody) -> ToolChoice | None:
    """None where no tool may be called. Raises ValidationFailed for a wrong shape, ToolError for an unknown name."""
    if not body.tools:
        return None
    try:
        declared = msgspec.convert(body.tools, _TOOLS)
    except msgspec.ValidationError as error:
        raise _shape_error(str(error)) from None
    specs = tuple(_spec(tool.function, index) for index, tool in enumerate(declared))
    choice = _choice(body.tool_choice)
    if choice == "none":
        return None
    named = None if choice in ("auto", "required") else choice
    if named is not None and named not in {spec.name for spec in specs}:
        known = ", ".join(spec.name for spec in specs)
        raise ToolError(f"`tool_choice` names {named!r}, which is none of the tools: {known}", field="tool_choice")
    return ToolChoice(
        shown=[_shown(raw, spec) for raw, spec in zip(body.tools, specs, strict=True)],
        specs=specs if named is None else tuple(spec for spec in specs if spec.name == named)[:1],
        chosen=named,
        is_required=choice != "auto",
        # A named tool is one call, as at OpenAI, unless several are asked for.
        is_parallel=body.parallel_tool_calls is not False and (named is None or bool(body.parallel_tool_calls)),
        prompt=body.tool_prompt or None,
    )


def for_template(template: ChatTemplate, chat: ChatRequest, tools: ToolChoice | None) -> ChatRequest:
    """The conversation as this template can show it: one that knows no tools or calls gets them as text."""
    if not template.mentions("tool_calls"):
        chat = replace(chat, messages=[_call_as_text(message) for message in chat.messages])
    if tools is None:
        return chat
    text = tool_words(tools.shown, tools.prompt, template_takes_tools=template.takes_tools)
    if text:
        chat = _with_last_text(chat, text)
    return replace(chat, tools=tools.shown) if template.takes_tools else chat


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How one call's answers are written and read; made when the prompt is known."""

    tools: ToolFormat | None
    reasoning: ReasoningFormat | None
    is_reasoning: bool  # the prompt has opened it
    has_reasoned: bool = False  # and closed it
    tool_names: tuple[str, ...] = ()
    is_parallel: bool = True

    @property
    def is_plain(self) -> bool:
        """All text is content."""
        return self.tools is None and self.reasoning is None

    @property
    def markers(self) -> frozenset[str]:
        return markers_of(self.tools, self.reasoning)

    def new_reader(self) -> "AnswerReader":
        parser = ChatParser(self.tools, self.reasoning, self.tool_names, is_reasoning=self.is_reasoning)
        return AnswerReader(parser, self.is_parallel)

    def marker_ids(self, tokenizer: Tokenizer) -> dict[str, int]:
        """Of the markers that are tokens."""
        ids = {marker: tokenizer.token_to_id(marker) for marker in self.markers}
        return {marker: token_id for marker, token_id in ids.items() if token_id is not None}

    def thought(self, tokenizer: Tokenizer) -> ReasoningForm | None:
        """The reasoning that may stand before the answer, as grammars see it."""
        if self.reasoning is None or self.has_reasoned:
            return None
        return ReasoningForm(self.reasoning, self.marker_ids(tokenizer), self.is_reasoning)


PLAIN_FORM = AnswerForm(None, None, False)


class AnswerReader:
    """Reads one answer. Where calls may not be parallel, those after the first are left out."""

    def __init__(self, parser: ChatParser, is_parallel: bool) -> None:
        self._parser = parser
        self._is_parallel = is_parallel

    def push(self, text: str) -> list[Delta]:
        return self._allowed(self._parser.push(text))

    def finish(self, was_cut: bool) -> list[Delta]:
        return self._allowed(self._parser.finish(was_cut))

    @property
    def is_in_call(self) -> bool:
        return self._parser.is_in_call

    def _allowed(self, deltas: list[Delta]) -> list[Delta]:
        if self._is_parallel:
            return deltas
        return [delta for delta in deltas if not isinstance(delta, ToolCallStart | ToolArguments) or delta.index == 0]


def answer_form(template: ChatTemplate, prompt: str, tools: ToolChoice | None, settings: Settings) -> AnswerForm:
    """By flags, else by what the template teaches."""
    reasoning = reasoning_format_of(template.source)
    if settings.reasoning_parser is not None:
        reasoning = ReasoningFormat(settings.reasoning_parser)
    is_reasoning = starts_in_reasoning(prompt, reasoning)
    has_reasoned = has_ended_reasoning(prompt, reasoning)
    if tools is None:
        return AnswerForm(None, reasoning, is_reasoning, has_reasoned)
    form = tool_format_of(template.source) if template.takes_tools else ToolFormat.JSON
    if settings.tool_call_parser is not None:
        form = ToolFormat(settings.tool_call_parser)
    names = tuple(spec.name for spec in tools.specs)
    return AnswerForm(form, reasoning, is_reasoning, has_reasoned, names, is_parallel=tools.is_parallel)


def grammar_for(tools: ToolChoice | None, form: AnswerForm, tokenizer: Tokenizer) -> Grammar | None:
    """What makes the model call as it must; None where it is free. Raises ValidationFailed."""
    if tools is None or form.tools is None:
        return None
    output_form = OutputForm(form.tools, form.marker_ids(tokenizer), form.thought(tokenizer))
    return tool_grammar(tools.specs, output_form, is_required=tools.is_required, is_parallel=tools.is_parallel)


def _choice(choice: object) -> str:
    """`auto`, `none`, `required` or a tool's name; TGI's shapes too."""
    if choice is None:
        return "auto"
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        for key in ("FunctionName", "name"):
            name = choice.get(key) if name is None else name
        choice = name
    if not isinstance(choice, str):
        raise ValidationFailed(
            '`tool_choice` must be "auto", "none", "required" or {"type": "function", "function": {"name": ...}}',
            field="tool_choice",
        )
    return choice


def _spec(function: DeclaredFunction, index: int) -> ToolSpec:
    if not function.name:
        path = f"tools[{index}].function.name"
        raise ValidationFailed(f"`{path}` must not be empty", field=path)
    schema = function.parameters if function.parameters is not None else function.arguments
    if schema is not None and not isinstance(schema, dict):
        path = f"tools[{index}].function.parameters"
        raise ValidationFailed(f"`{path}` must be a JSON schema as an object", field=path)
    return ToolSpec(function.name, schema, bool(function.strict))


def _shown(raw: dict[str, Any], spec: ToolSpec) -> dict[str, Any]:
    """As the client wrote it, with the keys that templates look for."""
    function = {key: value for key, value in raw["function"].items() if value is not None and key != "arguments"}
    if "parameters" not in function and spec.parameters is not None:
        function["parameters"] = spec.parameters
    shown = {key: value for key, value in raw.items() if value is not None}
    return {"type": "function", **shown, "function": function}


def _call_as_text(message: Message) -> Message:
    """An assistant's calls as the text in which the tool prompt asks for them."""
    if "tool_calls" not in message:
        return message
    said = text_of(message.get("content", ""))
    lines = [said] if said else []
    for call in message["tool_calls"]:
        function = call["function"]
        called = {"name": function["name"], "parameters": function["arguments"]}
        lines.append(json.dumps(called, ensure_ascii=False))
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": "\n".join(lines)}


def _with_last_text(chat: ChatRequest, text: str) -> ChatRequest:
    """The text after the last message that is not the assistant's."""
    messages = list(chat.messages) or [{"role": "user", "content": ""}]
    places = [index for index, message in enumerate(messages) if message["role"] != "assistant"]
    index = places[-1] if places else len(messages) - 1
    content = messages[index].get("content", "")
    messages[index] = {**messages[index], "content": with_more_text(content, text)}
    return replace(chat, messages=messages)


def _shape_error(text: str) -> ValidationFailed:
    what, _, path = text.partition(" - at `$")
    field = f"tools{path.rstrip('`')}"
    return ValidationFailed(f"`{field}`: {what[:1].lower()}{what[1:]}", field=field)
