"""The grammar that makes a model call tools as it is asked to, in its own format; in the dialect of llguidance."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textmill_router.errors import ValidationFailed
from textmill_router.grammar.lark import ANY_TEXT, SPACES, escape, json_rule, literal, marked, text_without
from textmill_router.grammar.reasoning_grammar import ReasoningForm, reasoning_parts
from textmill_router.parsers.formats import ToolFormat
from textmill_router.request import Grammar

_WS = r"[ \t\r\n]*"
# How a call may begin where no tag says so; `parsers/json_call.py` takes nothing else. NAMES: the tools' names.
_ANY_CALL = (
    rf"\{{{_WS}(\x{{22}}name\x{{22}}{_WS}:{_WS}(NAMES)|\x{{22}}(arguments|parameters|function|id|type)\x{{22}}{_WS}:)"
)


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool of a request. `parameters` is the schema of its arguments, None where any object will do."""

    name: str
    parameters: Mapping[str, Any] | None = None
    is_strict: bool = False


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How the model writes. `marker_ids`: ids of the added tokens among the markers of the format."""

    tools: ToolFormat
    marker_ids: Mapping[str, int]
    reasoning: ReasoningForm | None = None  # None: it does not think, or has done so


def tool_grammar(
    tools: Sequence[ToolSpec], form: OutputForm, *, is_required: bool, is_parallel: bool
) -> Grammar | None:
    """What the output must match; None where nothing is enforced.

    `is_required`: at least one call and no text. A named tool is this with `tools` narrowed to it. Else the answer is
    free but for calls of strict tools. `is_parallel`: an answer may hold more than one call. Raises ValidationFailed
    for a schema that is not one of objects.
    """
    if not tools or not (is_required or any(tool.is_strict for tool in tools)):
        return None
    writer = _Writer(form)
    for tool in tools:
        writer.add_tool(tool, keeps_schema=is_required or tool.is_strict)
    answer = writer.calls(is_parallel) if is_required else writer.free_answer(is_parallel)
    return Grammar(writer.finish(answer))


@dataclass(frozen=True, slots=True)
class _Shape:
    """What stands around calls and between them, and how a call goes on after its first part."""

    first: str  # before the name
    middle: str  # between name and arguments
    last: str  # after the arguments
    opening: str = ""  # a tag before each call, or before the array
    closing: str = ""
    between: str = ""
    array: bool = False


_SHAPES = {
    ToolFormat.HERMES: _Shape(
        '{"name": "', '", "arguments": ', "}", opening="<tool_call>", closing="</tool_call>", between="\n"
    ),
    ToolFormat.LLAMA3_JSON: _Shape('{"name": "', '", "parameters": ', "}", between="; "),
    ToolFormat.MISTRAL: _Shape('{"name": "', '", "arguments": ', "}", opening="[TOOL_CALLS]", between=", ", array=True),
    ToolFormat.JSON: _Shape('{"name": "', '", "parameters": ', "}", between="\n"),
}
# Vocabularies that have the token [ARGS] belong to models that write a name and not an object after the tag.
_MISTRAL_NAMES = _Shape("", "[ARGS]", "", opening="[TOOL_CALLS]")


class _Writer:
    """Collects the rules of one grammar."""

    def __init__(self, form: OutputForm) -> None:
        self._form = form
        shape = _SHAPES[form.tools]
        has_names = form.tools is ToolFormat.MISTRAL and "[ARGS]" in form.marker_ids
        self._shape = _MISTRAL_NAMES if has_names else shape
        self._rules: list[str] = []
        self._calls: list[str] = []  # rule of each tool's call, whole
        self._names: list[str] = []
        self._tails: list[tuple[str, str]] = []  # text up to the arguments, and the rule of what follows

    def add_tool(self, tool: ToolSpec, *, keeps_schema: bool) -> None:
        number = len(self._calls)
        shape = self._shape
        schema = _object_schema(tool) if keeps_schema else {"type": "object"}
        # A bare name is written as it is; inside JSON its quotes and backslashes are escaped.
        name = json.dumps(tool.name, ensure_ascii=False)[1:-1] if shape.first else tool.name
        self._rules.append(f"arguments{number}: {json_rule(json.dumps(schema))}")
        self._rules.append(f"tail{number}: arguments{number}{literal(shape.last)}")
        middle = self._marked(shape.middle)
        self._rules.append(f"call{number}:{literal(shape.first + name)} {middle} tail{number}")
        self._calls.append(f"call{number}")
        self._names.append(tool.name)
        self._tails.append((shape.first + name + shape.middle, f"tail{number}"))

    def calls(self, is_parallel: bool) -> str:
        """One call, or as many as the model likes."""
        return f"{self._marked(self._shape.opening)} {self._calls_after_tag(is_parallel)}"

    def _calls_after_tag(self, is_parallel: bool) -> str:
        shape = self._shape
        between = literal(shape.between)
        opening, closing = self._marked(shape.opening), self._marked(shape.closing)
        self._rules.append(f"call: {' | '.join(self._calls)}")
        if shape.array:
            further = f"({between} call)*" if is_parallel else ""
            return f'"[" call {further} "]" {closing}'
        line = r'"\n"' if self._form.tools is ToolFormat.HERMES else ""
        further = f"({between} {opening} {line} call {line} {closing})*" if is_parallel else ""
        return f"{line} call {line} {closing} {further}"

    def free_answer(self, is_parallel: bool) -> str:
        """Text, and after it calls: where one begins, it goes on as one of the tools demands."""
        if self._shape.opening:
            return self._free_before_tag(self._calls_after_tag(is_parallel))
        # No tag: nothing may begin as the parser takes calls to begin, but in the spelling that leads to a tool's rule.
        names = "|".join(escape(json.dumps(name)) for name in self._names)
        begin = _ANY_CALL.replace("NAMES", names)
        self._rules.append(f"REST: /{ANY_TEXT}/ & ~/{ANY_TEXT}{begin}{ANY_TEXT}/")
        for number, (text, _) in enumerate(self._tails):
            start = f"{ANY_TEXT}{escape(text)}"
            self._rules.append(f"START{number}: /{start}/ & ~/{ANY_TEXT}{begin}{start}/")
            self._rules.append(f"start{number}[lazy]: START{number}")
        options = " | ".join(f"start{number} {tail}" for number, (_, tail) in enumerate(self._tails))
        self._rules.append(f"text_and_call: {options}")
        return f"text_and_call{'*' if is_parallel else '?'} REST"

    def _free_before_tag(self, calls: str) -> str:
        opening = self._shape.opening
        self._rules.append(f"REST: {text_without(opening)}")
        if opening in self._form.marker_ids:
            # A regular expression does not match a marker that is a token: text ends before it.
            return f"REST | REST {self._marked(opening)} {calls} {SPACES}"
        self._rules.append(f"before[lazy]: /{ANY_TEXT}{escape(opening)}/")
        return f"REST | before {calls} {SPACES}"

    def finish(self, answer: str) -> str:
        """All rules; reasoning, where the model writes any, stands free before the answer."""
        thought = reasoning_parts(self._form.reasoning)
        return "\n".join([f"start: {thought.prefix}answer", f"answer: {answer}", *thought.rules, *self._rules])

    def _marked(self, text: str) -> str:
        return marked(text, self._form.marker_ids)


def _object_schema(tool: ToolSpec) -> dict[str, Any]:
    schema = dict(tool.parameters or {})
    if schema.setdefault("type", "object") != "object":
        raise ValidationFailed(
            f'the parameters of the tool `{tool.name}` must be a schema of type "object", found {schema["type"]!r}',
            field="tools",
        )
    return schema
