"""Grammars of answers before which a model may think: its reasoning is free, what follows is as asked."""

from collections.abc import Mapping
from dataclasses import dataclass

from textmill_router.grammar.lark import ANY_TEXT, SPACES, escape, marked, text_without
from textmill_router.grammar.request_forms import AskedGrammar
from textmill_router.parsers.formats import ReasoningFormat
from textmill_router.request import Grammar


@dataclass(frozen=True, slots=True)
class ReasoningForm:
    """How a model thinks. `marker_ids`: ids of the tags that are tokens. `is_open`: the prompt has begun it."""

    reasoning: ReasoningFormat
    marker_ids: Mapping[str, int]
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class LarkParts:
    """What stands before the answer in the start rule, and the rules that it needs."""

    prefix: str = ""
    rules: tuple[str, ...] = ()


def reasoning_parts(form: ReasoningForm | None) -> LarkParts:
    """Text up to the first closing tag, which must come where reasoning has begun."""
    if form is None:
        return LarkParts()
    tags = form.reasoning.tags
    if tags.closing in form.marker_ids:
        # Spelt in letters the tag would end the reasoning for the reader, not for the grammar.
        rules = (
            f"THOUGHT: {text_without(tags.closing)}",
            f"thought: THOUGHT {marked(tags.closing, form.marker_ids)} {SPACES}",
        )
    else:
        rules = (f"until_closing[lazy]: /{ANY_TEXT}{escape(tags.closing)}/", f"thought: until_closing {SPACES}")
    prefix = "thought " if form.is_open else f"({marked(tags.opening, form.marker_ids)} thought)? "
    return LarkParts(prefix, rules)


def after_reasoning(asked: AskedGrammar, form: ReasoningForm | None, *, closes_objects: bool = True) -> Grammar:
    """The grammar for the text that follows the reasoning; for the whole output where the model does not think."""
    if form is None:
        return asked.whole_output(closes_objects=closes_objects)
    found = asked.rules(closes_objects=closes_objects)
    parts = reasoning_parts(form)
    return Grammar("\n".join([f"start: {parts.prefix}answer", f"answer: {found.body}", *found.rules, *parts.rules]))
