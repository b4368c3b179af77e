"""Writes grammars for models that think: the reasoning is free, and the answer behind the reasoning is bound."""

from collections.abc import Mapping
from dataclasses import dataclass

from textmill_router.grammar.lark import ANY_TEXT, SPACES, escape, marked, text_without
from textmill_router.grammar.request_forms import AskedGrammar
from textmill_router.parsers.formats import ReasoningFormat
from textmill_router.request import Grammar


@dataclass(frozen=True, slots=True)
class ReasoningForm:
    """How a model thinks. `marker_ids`: ids of the tags that are tokens. `is_open`: the prompt began the reasoning."""

    reasoning: ReasoningFormat
    marker_ids: Mapping[str, int]
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class LarkParts:
    """The part of the start rule before the answer, and the rules which that part names."""

    prefix: str = ""
    rules: tuple[str, ...] = ()


def reasoning_parts(form: ReasoningForm | None) -> LarkParts:
    """Return the parts that match text up to the first closing tag. Reasoning that has begun must be closed."""
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
    """Return a grammar that binds the text behind the reasoning, or the whole output where the model does not think."""
    if form is None:
        return asked.whole_output(closes_objects=closes_objects)
    found = asked.rules(closes_objects=closes_objects)
    parts = reasoning_parts(form)
    return Grammar("\n".join([f"start: {parts.prefix}answer", f"answer: {found.body}", *found.rules, *parts.rules]))
