"""Grammars of answers that are messages in channels: reasoning is free, text and calls are as asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from textmill_router.errors import ValidationFailed
from textmill_router.exact_json import dump_json
from textmill_router.grammar.lark import ANY_TEXT, escape, literal, marked
from textmill_router.grammar.request_forms import AskedGrammar, checked_rules
from textmill_router.grammar.tool_grammar import object_schema
from textmill_router.parsers.tools.harmony import (
    ASSISTANT,
    CHANNEL,
    CONSTRAIN,
    END,
    FUNCTIONS,
    HARMONY,
    MARKS,
    MESSAGE,
    START,
    HarmonyReader,
)
from textmill_router.parsers.tools.tool_format import ToolSpec
from textmill_router.request import Grammar


@dataclass(frozen=True, slots=True)
class ChannelForm:
    """How the model writes. `marker_ids`: ids of marks that are tokens. `begun`: the text that the prompt has begun."""

    marker_ids: Mapping[str, int]
    begun: str = ASSISTANT


def channel_grammar(
    content: AskedGrammar | None,
    tools: Sequence[ToolSpec],
    form: ChannelForm,
    *,
    is_required: bool = False,
    is_narrowed: bool = False,
    closes_objects: bool = True,
) -> Grammar | None:
    """The grammar that the output must match; None where nothing is enforced. For the arguments see `tool_grammar`.

    An answer has one call at most, because a model of this kind ends its turn with the mark behind a call. Raises
    ValidationFailed for a tool whose schema is not one of objects.
    """
    if content is None and not (is_required or is_narrowed or any(tool.is_strict for tool in tools)):
        return None
    writer = _Writer(form.marker_ids, closes_objects)
    calls = [writer.call(tool, keeps_schema=is_required or tool.is_strict) for tool in tools]
    ends = list(calls)
    if not is_required:
        ends.append(writer.text("final", content))
    # Texts for the reader in front of a call are free where no format and no call is asked for.
    channels = ("analysis",) if is_required or content is not None else ("analysis", "commentary")
    return writer.grammar(channels, ends, form.begun)


class _Writer:
    """Collects the rules of one grammar."""

    def __init__(self, marker_ids: Mapping[str, int], closes_objects: bool) -> None:
        self._marker_ids = marker_ids
        self._closes_objects = closes_objects
        marks = "|".join(map(escape, MARKS))
        # A mark that is spelt in letters is a mark to the reader.
        self._rules = [f"TEXT: /{ANY_TEXT}/ & ~/{ANY_TEXT}({marks}){ANY_TEXT}/"]
        if END in marker_ids:
            self._rules.append(f"ended: TEXT {self._marked(END)}")
        else:
            others = "|".join(escape(mark) for mark in MARKS if mark != END)
            self._rules.append(f"ENDED: /{ANY_TEXT}{escape(END)}/ & ~/{ANY_TEXT}({others}){ANY_TEXT}/")
            self._rules.append("ended[lazy]: ENDED")
        self._num_calls = 0

    def call(self, tool: ToolSpec, *, keeps_schema: bool) -> str:
        """The name of a rule for a call of the tool, whose recipient stands before or behind the channel.

        Raises ValidationFailed for a name that would end the recipient, and for a schema that is not one of objects.
        """
        if any(char.isspace() or char == "<" for char in tool.name):
            raise ValidationFailed(
                f"the tool `{tool.name}` cannot be enforced in this model's format: its name holds a space or `<`",
                field="tools",
            )
        number = self._num_calls
        self._num_calls += 1
        schema = object_schema(tool, self._closes_objects) if keeps_schema else {"type": "object"}
        value = checked_rules(
            dump_json(schema),
            f"value{number}",
            field="tools",
            is_strict=tool.is_strict,
            closes_objects=self._closes_objects,
        )
        recipient = f" to={FUNCTIONS}{tool.name}"
        channel, kind = self._marked(CHANNEL), self._marked(CONSTRAIN)
        end = f"{literal('json')} {self._marked(MESSAGE)}"
        self._rules += [
            f"call{number}: head{number} value{number}",
            f"head{number}: {channel} {literal(f'commentary{recipient} ')} {kind} {end}"
            f" | {literal(recipient)} {channel} {literal('commentary ')} ({kind})? {end}",
            f"value{number}: {value.body}",
            *value.rules,
        ]
        return f"call{number}"

    def text(self, channel: str, content: AskedGrammar | None) -> str:
        """The name of a rule for the last message: a text that matches the content, or any text."""
        body = "TEXT" if content is None else "content"
        if content is not None:
            found = content.rules(closes_objects=self._closes_objects)
            self._rules += [f"content: {found.body}", *found.rules]
        self._rules.append(f"text: {self._marked(CHANNEL)} {literal(channel)} {self._marked(MESSAGE)} text_body")
        self._rules.append(f"text_body: {body}")
        return "text"

    def grammar(self, channels: Sequence[str], ends: Sequence[str], begun: str) -> Grammar:
        """Any number of messages in the channels, then one of the ends. The grammar begins where the prompt ends."""
        names = " | ".join(literal(channel) for channel in channels)
        next_header = f"{self._marked(START)} {literal(ASSISTANT)}"
        self._rules += [
            f"thought: {self._marked(CHANNEL)} ({names}) {self._marked(MESSAGE)} ended {next_header}",
            f"turn: thought* ({' | '.join(ends)})",
        ]
        reader = HarmonyReader(None, HARMONY.new_id, begun)
        if reader.is_in_reasoning:
            start = f"ended {next_header} turn"
        elif reader.is_in_text:
            start = "text_body" if "text" in ends else f"ended {next_header} turn"
        elif reader.is_between:
            start = f"{next_header} turn"
        else:
            start = "turn"
        return Grammar("\n".join([f"start: {start}", *self._rules]))

    def _marked(self, text: str) -> str:
        return marked(text, self._marker_ids).strip()
