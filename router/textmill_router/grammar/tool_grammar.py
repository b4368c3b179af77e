"""Writes the grammar that makes a model call tools as the request asks, in the model's own format of calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textmill_router.errors import ValidationFailed
from textmill_router.exact_json import dump_json
from textmill_router.grammar.lark import ANY_TEXT, SPACES, escape, literal, marked, regex_rule, text_without
from textmill_router.grammar.reasoning_grammar import ReasoningForm, reasoning_parts
from textmill_router.grammar.request_forms import AskedGrammar, checked_rules, not_strict
from textmill_router.parsers.tools.call_shape import (
    InOrder,
    JsonValue,
    LeftToCheck,
    Marker,
    Maybe,
    OneOf,
    Piece,
    Repeated,
    Shared,
    Text,
    TextUntil,
    WrittenCall,
)
from textmill_router.parsers.tools.tool_format import ToolFormat, ToolSpec
from textmill_router.request import Grammar

# A schema of these keywords alone has no part that speaks of an object's keys in another place.
_PLAIN_KEYS = frozenset({"type", "properties", "required", "title", "description", "$defs", "definitions", "$schema"})


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How the model writes. `marker_ids` holds the ids of those markers of the format that are tokens."""

    tools: ToolFormat
    marker_ids: Mapping[str, int]
    reasoning: ReasoningForm | None = None  # None: the model does not think, or its thought has ended


def tool_grammar(
    tools: Sequence[ToolSpec],
    form: OutputForm,
    *,
    is_required: bool,
    is_parallel: bool,
    is_narrowed: bool = False,
    content: AskedGrammar | None = None,
    closes_objects: bool = True,
) -> Grammar | None:
    """The grammar that the output must match; None where nothing is enforced.

    `is_required` asks for at least one call and no text. A request that names a tool asks for this with that tool alone
    in `tools`. Without `is_required` the answer is free, but calls of strict tools follow their schemas.
    An answer without calls must match `content`, and calls then have no text beside them. `is_narrowed` says that the
    model sees further tools, which it may not call. `is_parallel` lets an answer hold more than one call. Raises
    ValidationFailed for a schema that is not one of objects.
    """
    is_bound = is_required or is_narrowed or content is not None
    if not tools or not (is_bound or any(tool.is_strict for tool in tools)):
        return None
    writer = _Writer(form, closes_objects)
    for tool in tools:
        writer.add_tool(tool, keeps_schema=is_required or tool.is_strict)
    if is_required:
        answer = writer.calls(is_parallel)
    elif content is not None:
        answer = writer.calls_or_content(is_parallel, content)
    else:
        answer = writer.free_answer(is_parallel)
    return Grammar(writer.finish(answer))


class _Writer:
    """Collects the rules of one grammar."""

    def __init__(self, form: OutputForm, closes_objects: bool) -> None:
        self._form = form
        self._closes_objects = closes_objects
        self._is_strict = False  # the tool whose rules are being written
        assert form.tools.shape is not None, "the format frames the whole answer"
        self._shape = form.tools.shape(form.marker_ids)
        self._rules: list[str] = []
        self._num_rules = 0  # of pieces
        self._shared: dict[int, str] = {}  # rules of shared pieces, by the piece's identity
        self._calls: list[str] = []  # rule of each tool's call, whole
        self._names: list[str] = []
        self._written: list[WrittenCall] = []
        self._heads: list[str] = []  # text up to where each tool's call can be no other

    def add_tool(self, tool: ToolSpec, *, keeps_schema: bool) -> None:
        """Raises ValidationFailed for a schema that the format cannot write."""
        number = len(self._calls)
        schema = object_schema(tool, self._closes_objects) if keeps_schema else {"type": "object"}
        self._is_strict = tool.is_strict
        call = self._shape.write_call(tool.name, schema)
        self._written.append(call)  # kept, because pieces are known by their identity
        self._rules.append(f"tail{number}: {self._lark(call.rest)}")
        self._rules.append(f"call{number}:{literal(call.head)} tail{number}")
        self._calls.append(f"call{number}")
        self._names.append(call.name)
        self._heads.append(call.head)

    def calls(self, is_parallel: bool) -> str:
        """One call, or as many as the model likes."""
        return f"{self._marked(self._shape.opening)} {self._calls_after_tag(is_parallel)}"

    def calls_or_content(self, is_parallel: bool, content: AskedGrammar) -> str:
        """Calls without text, or the content without calls."""
        found = content.rules(closes_objects=self._closes_objects)
        self._rules += [f"content: {found.body}", *found.rules]
        self._is_strict = False  # strict tools whose schema rules cannot hold were refused before
        if not self._shape.opening:
            for number, call in enumerate(self._written):
                if call.schema is not None:
                    self._calls[number] = self._value(call.schema)
        return f"{self.calls(is_parallel)} {SPACES} | content"

    def _calls_after_tag(self, is_parallel: bool) -> str:
        shape = self._shape
        between, before, after = literal(shape.between), literal(shape.before), literal(shape.after)
        opening, closing = self._marked(shape.opening), self._marked(shape.closing)
        self._rules.append(f"call: {' | '.join(self._calls)}")
        if shape.is_list:
            further = f"({between} call)*" if is_parallel else ""
            return f"{before} call {further} {after} {closing}"
        further = f"({between} {opening} {before} call {after} {closing})*" if is_parallel else ""
        return f"{before} call {after} {closing} {further}"

    def free_answer(self, is_parallel: bool) -> str:
        """Text, and then calls. Where a call begins, the answer goes on as one of the tools demands."""
        shape = self._shape
        if shape.opening:
            return self._free_before_tag(self._calls_after_tag(is_parallel))
        # No tag: nothing may begin as the parser takes calls to begin, but in the spelling that leads to a tool's rule.
        begin = shape.any_call.replace("NAMES", "|".join(map(escape, self._names)))
        self._rules.append(f"REST: /{ANY_TEXT}/ & ~/{ANY_TEXT}{begin}{ANY_TEXT}/")
        further = ""
        if shape.is_list:
            self._rules.append(f"call: {' | '.join(self._calls)}")
            more = f"({literal(shape.between)} call)*" if is_parallel else ""
            further = f" {more}{literal(shape.after)}"
        options = []
        for number, head in enumerate(self._heads):
            start = f"{ANY_TEXT}{escape(shape.before + head)}"
            self._rules.append(f"START{number}: /{start}/ & ~/{ANY_TEXT}{begin}{start}/")
            self._rules.append(f"start{number}[lazy]: START{number}")
            options.append(f"start{number} tail{number}{further}")
        self._rules.append(f"text_and_call: {' | '.join(options)}")
        return f"text_and_call{'*' if is_parallel else '?'} REST"

    def _free_before_tag(self, calls: str) -> str:
        shape = self._shape
        untagged = f" & ~/{ANY_TEXT}{shape.any_call}{ANY_TEXT}/" if shape.any_call else ""
        self._rules.append(f"REST: {text_without(shape.opening)}{untagged}")
        if shape.opening in self._form.marker_ids:
            # A regular expression does not match a marker that is a token: text ends before it.
            return f"REST | REST {self._marked(shape.opening)} {calls} {SPACES}"
        self._rules.append(f"BEFORE: /{ANY_TEXT}{escape(shape.opening)}/{untagged}")
        self._rules.append("before[lazy]: BEFORE")
        return f"REST | before {calls} {SPACES}"

    def finish(self, answer: str) -> str:
        """All rules. Where the model writes reasoning, the reasoning stands free before the answer."""
        thought = reasoning_parts(self._form.reasoning)
        return "\n".join([f"start: {thought.prefix}answer", f"answer: {answer}", *thought.rules, *self._rules])

    def _lark(self, piece: Piece) -> str:
        """A piece as a part of a rule. Values and long texts get rules of their own."""
        match piece:
            case Text(text):
                return literal(text)
            case Marker(text):
                return self._marked(text)
            case JsonValue(schema):
                return self._value(schema)
            case TextUntil(end, expressions):
                return self._text_until(end, expressions)
            case LeftToCheck(keywords):
                if self._is_strict and keywords:
                    raise not_strict("tools", keywords)
                return ""
            case InOrder(pieces):
                return " ".join(map(self._lark, pieces))
            case OneOf(pieces):
                return f"({' | '.join(map(self._lark, pieces))})"
            case Maybe(inner):
                return f"({self._lark(inner)})?"
            case Repeated(inner):
                return f"({self._lark(inner)})*"
            case Shared(inner):
                if id(piece) not in self._shared:
                    self._shared[id(piece)] = self._rule("shared", self._lark(inner))
                return self._shared[id(piece)]

    def _value(self, schema: Mapping[str, Any] | bool) -> str:
        self._num_rules += 1
        name = f"value{self._num_rules}"
        found = checked_rules(
            dump_json(schema),
            name,
            field="tools",
            is_strict=self._is_strict,
            closes_objects=self._closes_objects,
        )
        self._rules += [f"{name}: {found.body}", *found.rules]
        return name

    def _text_until(self, end: str, expressions: Sequence[str]) -> str:
        self._num_rules += 1
        if end in self._form.marker_ids:
            shapes = [regex_rule(text) for text in expressions or (ANY_TEXT,)]
            self._rules.append(f"UNTIL{self._num_rules}: {' & '.join(shapes)} & ~/{ANY_TEXT}{escape(end)}{ANY_TEXT}/")
            return f"UNTIL{self._num_rules} {self._marked(end)}"
        shapes = [regex_rule(f"({text}){escape(end)}") for text in expressions or (ANY_TEXT,)]
        self._rules.append(f"UNTIL{self._num_rules}: {' & '.join(shapes)} & ~/{ANY_TEXT}{escape(end)}(?s:.+)/")
        return self._rule("until", f"UNTIL{self._num_rules}", "[lazy]")

    def _rule(self, name: str, body: str, options: str = "") -> str:
        self._num_rules += 1
        self._rules.append(f"{name}{self._num_rules}{options}: {body}")
        return f"{name}{self._num_rules}"

    def _marked(self, text: str) -> str:
        return marked(text, self._form.marker_ids)


def object_schema(tool: ToolSpec, closes_objects: bool) -> dict[str, Any]:
    """The schema of a tool's arguments. Raises ValidationFailed for a schema that is not of objects.

    A tool without `parameters`, or with an empty schema, takes no arguments, as at OpenAI.
    """
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = dict(tool.parameters)
    if schema.setdefault("type", "object") != "object":
        raise ValidationFailed(
            f'the parameters of the tool `{tool.name}` must be a schema of type "object", found {schema["type"]!r}',
            field="tools",
        )
    if closes_objects and schema.keys() <= _PLAIN_KEYS and schema.keys() & {"properties", "required"}:
        schema["additionalProperties"] = False  # for formats that write each parameter by itself
    return schema
