"""The last check of finished outputs against what the request asked for, in every dialect alike."""

from textmill_router.chat.answer_form import was_cut
from textmill_router.chat.tools import ToolChoice
from textmill_router.exact_json import dump_json
from textmill_router.grammar.answer_check import check_answer
from textmill_router.grammar.request_forms import AskedGrammar, AskedKind
from textmill_router.parsers.deltas import ParsedMessage
from textmill_router.text.events import GenerationResult


def check_output(result: GenerationResult, asked: AskedGrammar | None) -> None:
    """An output that ended by itself matches the grammar that was asked for. Raises GenerationBroke."""
    if asked is not None and not was_cut(result):
        check_answer(result.text, asked)


def check_message(message: ParsedMessage, asked: AskedGrammar | None, tools: ToolChoice | None) -> None:
    """The message of an answer that ended by itself is as the grammar, or the tools that bind, demand.

    A message with calls need not match `asked`. Raises GenerationBroke.
    """
    if asked is not None and not message.tool_calls:
        check_answer(message.content or "", asked)
    if tools is None:
        return
    binding = {spec.name: spec.parameters for spec in tools.specs if tools.is_required or spec.is_strict}
    for call in message.tool_calls:
        if schema := binding.get(call.name):
            check_answer(call.arguments, AskedGrammar(AskedKind.JSON_SCHEMA, dump_json(schema), "tools"))
