"""The shape of an output with its message, and the tools that the outputs call."""

from dataclasses import dataclass

from textmill_router.parsers.chat_parser import ChatParser
from textmill_router.parsers.deltas import ParsedMessage, collect
from textmill_router.parsers.tools.tool_format import ToolSpec


@dataclass(frozen=True)
class Output:
    """An output with its message. A call is (name, arguments).

    `is_reasoning` means that the prompt opens reasoning, `has_broken_call` that a call's arguments are no whole JSON.
    `ids` are the ids of the calls, where the model writes them.
    """

    text: str
    content: str | None = None
    calls: tuple[tuple[str, str], ...] = ()
    reasoning: str | None = None
    is_reasoning: bool = False
    has_broken_call: bool = False
    ids: tuple[str, ...] = ()


def parse_whole(parser: ChatParser, text: str, *, was_cut: bool) -> ParsedMessage:
    """Return the message of a whole answer, by a new parser."""
    return collect([*parser.push(text), *parser.finish(was_cut)])


# The schemas matter for formats that do not write the type of a value.
_TYPES = {
    "a": {"type": "integer"},
    "flag": {"type": ["boolean", "null"]},
    "list": {"$ref": "#/$defs/numbers"},
    "map": {"type": "object"},
    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "mixed": {"type": ["string", "integer"]},
    "any": {},
    "text": {"type": "string"},
}
_SCHEMA = {"type": "object", "properties": _TYPES, "$defs": {"numbers": {"type": "array", "items": {"type": "number"}}}}
TOOLS = (ToolSpec("weather"), ToolSpec("add", _SCHEMA), ToolSpec("say", _SCHEMA))
