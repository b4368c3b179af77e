"""The form of the answers to one conversation: how they are written, which grammar they obey, who reads them."""

from dataclasses import dataclass, replace
from typing import Protocol

from textmill_router.chat.template import ChatTemplate
from textmill_router.chat.tools import ToolChoice
from textmill_router.grammar.channel_grammar import ChannelForm, channel_grammar
from textmill_router.grammar.reasoning_grammar import ReasoningForm, after_reasoning
from textmill_router.grammar.request_forms import AskedGrammar
from textmill_router.grammar.tool_grammar import OutputForm, tool_grammar
from textmill_router.parsers.chat_parser import ChatParser
from textmill_router.parsers.deltas import ContentText, Delta, ToolArguments, ToolCallStart
from textmill_router.parsers.formats import (
    TOOL_FORMATS,
    ReasoningFormat,
    has_ended_reasoning,
    markers_of,
    reasoning_format_named,
    reasoning_format_of,
    starts_in_reasoning,
    tool_format_named,
    tool_format_of,
)
from textmill_router.parsers.tools.harmony import ASSISTANT, HARMONY, begun_message
from textmill_router.parsers.tools.tool_format import ToolFormat, ToolSpec
from textmill_router.request import FinishReason, Grammar
from textmill_router.text.events import GenerationResult
from textmill_router.text.tokenization import Tokenizer


class TextReader(Protocol):
    """Splits the text of one choice into reasoning, content and tool calls."""

    def push(self, text: str) -> list[Delta]: ...
    def finish(self, was_cut: bool) -> list[Delta]: ...

    @property
    def has_unfinished_call(self) -> bool: ...


class PlainReader:
    """The reader of answers without reasoning and calls: all text is content."""

    def push(self, text: str) -> list[Delta]:
        return [ContentText(text)] if text else []

    def finish(self, was_cut: bool) -> list[Delta]:
        return []

    @property
    def has_unfinished_call(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class FormatFlags:
    """The formats that --tool-call-parser and --reasoning-parser name; None where the template decides."""

    tool_call_parser: str | None = None
    reasoning_parser: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How the answers of one call are written and read. Once the prompt is known, `behind` gives the form for it."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    is_reasoning: bool = False  # the prompt has opened the reasoning
    has_reasoned: bool = False  # the prompt has opened and closed the reasoning
    begun: str = ASSISTANT  # the message that the prompt has begun, where messages have channels
    specs: tuple[ToolSpec, ...] = ()  # tools that may be called
    is_parallel: bool = True
    is_call_required: bool = False  # a grammar lets nothing but calls be written, so that no text is content

    @property
    def is_plain(self) -> bool:
        """Whether all text of an answer is content."""
        return self.tools is None and self.reasoning is None

    @property
    def has_channels(self) -> bool:
        """Reasoning, text and calls are messages of their own."""
        return self.tools is HARMONY or self.reasoning is ReasoningFormat.HARMONY

    @property
    def markers(self) -> frozenset[str]:
        return markers_of(self.tools, self.reasoning)

    def new_reader(self) -> TextReader:
        """Return a reader for one answer."""
        if self.is_plain:
            return PlainReader()
        parser = ChatParser(self.tools, self.reasoning, self.specs, is_reasoning=self.is_reasoning, begun=self.begun)
        return AnswerReader(
            parser, is_parallel=self.is_parallel, has_calls_alone=self.is_call_required and not self.has_channels
        )

    def behind(self, prompt: str, begun: str = "") -> "AnswerForm":
        """Return the form of the answers to this rendered prompt, which may have opened or closed the reasoning.

        `begun` is the answer's part of the prompt, as far as it is known.
        """
        return replace(
            self,
            is_reasoning=starts_in_reasoning(prompt, self.reasoning, begun),
            has_reasoned=has_ended_reasoning(prompt, self.reasoning, begun),
            begun=begun_message(prompt) if self.has_channels else ASSISTANT,
        )

    def without_reasoning(self) -> "AnswerForm":
        """Return the form of the part of an answer that does not depend on the prompt."""
        return replace(self, reasoning=None)

    def marker_ids(self, tokenizer: Tokenizer) -> dict[str, int]:
        """Return the ids of the markers that are single tokens."""
        ids = {marker: tokenizer.token_to_id(marker) for marker in self.markers}
        return {marker: token_id for marker, token_id in ids.items() if token_id is not None}

    def thought(self, tokenizer: Tokenizer) -> ReasoningForm | None:
        """Return the reasoning that may stand before the answer, as grammars see it; None where none may."""
        if self.reasoning is None or self.has_reasoned:
            return None
        return ReasoningForm(self.reasoning, self.marker_ids(tokenizer), self.is_reasoning)


PLAIN_FORM = AnswerForm()


class AnswerReader:
    """Reads one answer. Where calls may not be parallel, all calls after the first are left out.

    `has_calls_alone`: no text is content, so that the beginning of a call that was cut is no content either.
    """

    def __init__(self, parser: ChatParser, *, is_parallel: bool, has_calls_alone: bool = False) -> None:
        self._parser = parser
        self._is_parallel = is_parallel
        self._has_calls_alone = has_calls_alone

    def push(self, text: str) -> list[Delta]:
        return self._allowed(self._parser.push(text))

    def finish(self, was_cut: bool) -> list[Delta]:
        deltas = self._allowed(self._parser.finish(was_cut))
        if was_cut and self._has_calls_alone:
            return [delta for delta in deltas if not isinstance(delta, ContentText)]
        return deltas

    @property
    def has_unfinished_call(self) -> bool:
        first = self._parser.first_unfinished_call
        return first is not None and (self._is_parallel or first == 0)

    def _allowed(self, deltas: list[Delta]) -> list[Delta]:
        if self._is_parallel:
            return deltas
        return [delta for delta in deltas if not isinstance(delta, ToolCallStart | ToolArguments) or delta.index == 0]


def answer_form(template: ChatTemplate, tools: ToolChoice | None, flags: FormatFlags) -> AnswerForm:
    """Return the form before the prompt is known. A format that no flag names is the one that the template teaches.

    Channels frame the whole answer: a flag that names them names them for calls and reasoning, and a flag that names
    another format of calls leaves them out.
    """
    reasoning = reasoning_format_of(template.source)
    if flags.reasoning_parser is not None:
        reasoning = reasoning_format_named(flags.reasoning_parser)
    named = None if flags.tool_call_parser is None else tool_format_named(flags.tool_call_parser)
    if named is HARMONY:
        reasoning = ReasoningFormat.HARMONY
    elif named is not None and flags.reasoning_parser is None and reasoning is ReasoningFormat.HARMONY:
        reasoning = None
    if tools is None:
        return AnswerForm(reasoning=reasoning)
    tool_format = named
    if reasoning is ReasoningFormat.HARMONY:
        tool_format = HARMONY
    elif tool_format is None:
        tool_format = tool_format_of(template.source) if template.takes_tools else TOOL_FORMATS[-1]
    return AnswerForm(
        tool_format,
        reasoning,
        specs=tools.specs,
        is_parallel=tools.is_parallel,
        is_call_required=tools.is_required,
    )


def grammar_for(
    content: AskedGrammar | None,
    tools: ToolChoice | None,
    form: AnswerForm,
    tokenizer: Tokenizer,
    *,
    closes_objects: bool = True,
) -> Grammar | None:
    """The grammar of an answer whose content must match `content`, and whose calls must be as `tools` demand.

    Where a call is required there is no content, so that `content` asks for nothing.
    None where the answer is free. Raises ValidationFailed for a tool whose schema is not one of objects.
    """
    if form.has_channels:
        messages = ChannelForm(form.marker_ids(tokenizer), form.begun)
        if tools is None:
            return channel_grammar(content, (), messages, closes_objects=closes_objects)
        return channel_grammar(
            content,
            tools.specs,
            messages,
            is_required=tools.is_required,
            is_narrowed=tools.is_narrowed,
            closes_objects=closes_objects,
        )
    thought = form.thought(tokenizer)
    if tools is None or form.tools is None:
        if content is None:
            return None
        return after_reasoning(content, thought, closes_objects=closes_objects)
    output_form = OutputForm(form.tools, form.marker_ids(tokenizer), thought)
    return tool_grammar(
        tools.specs,
        output_form,
        is_required=tools.is_required,
        is_parallel=tools.is_parallel,
        is_narrowed=tools.is_narrowed,
        content=content,
        closes_objects=closes_objects,
    )


def was_cut(result: GenerationResult) -> bool:
    """Whether the limit of tokens or a stop string ended the answer, and not the model."""
    return result.finish_reason in (FinishReason.LENGTH, FinishReason.STOP_STRING)
