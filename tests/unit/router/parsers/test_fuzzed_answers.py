"""Any text a model may write is read without a fault, and reads alike in whichever pieces the text comes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textmill_router.parsers.chat_parser import ChatParser
from textmill_router.parsers.deltas import Delta, ParsedMessage, collect
from textmill_router.parsers.formats import TOOL_FORMATS, ReasoningFormat
from textmill_router.parsers.tools.tool_format import ToolFormat

from tests.fakes.chat_outputs import ALL, TOOLS

# Tags, brackets and pieces of JSON, which put together look like calls that are broken in every way.
JSON_PIECES = [
    "{",
    "}",
    "[",
    "]",
    '"',
    ":",
    ",",
    "\\",
    "\\u12",
    "\\ud83d",
    "null",
    "1e9",
    '{"name": "',
    '"arguments": {',
    "\n",
]
TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=4)


def pieces_of(tools: ToolFormat) -> st.SearchStrategy[list[str]]:
    """Texts near to the ones of a format: its markers whole and cut, parts of known outputs, JSON, anything."""
    known = [output.text for format_of, _, output in ALL if format_of is tools]
    cuts = [text[start : start + size] for text in known for start in range(0, len(text), 7) for size in (3, 11)]
    chosen = st.sampled_from([*tools.markers, *(marker[:-1] for marker in tools.markers), *cuts, *JSON_PIECES])
    return st.lists(chosen | TEXTS, max_size=14)


def read(parser: ChatParser, pieces: list[str], was_cut: bool) -> ParsedMessage:
    deltas: list[Delta] = []
    for piece in pieces:
        deltas += parser.push(piece)
    return collect(deltas + parser.finish(was_cut))


@pytest.mark.parametrize("tools", TOOL_FORMATS, ids=lambda tools: tools.name)
def test_any_answer_reads_alike_in_any_pieces(tools: ToolFormat) -> None:
    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(
        pieces=pieces_of(tools),
        was_cut=st.booleans(),
        reasoning=st.sampled_from([None, ReasoningFormat.THINK]),
        is_reasoning=st.booleans(),
    )
    def check(pieces: list[str], was_cut: bool, reasoning: ReasoningFormat | None, is_reasoning: bool) -> None:
        def parser() -> ChatParser:
            opened = is_reasoning and reasoning is not None
            return ChatParser(
                tools, reasoning, TOOLS, is_reasoning=opened, new_id=lambda name, number: f"call_{number}"
            )

        text = "".join(pieces)
        whole = read(parser(), [text], was_cut)
        assert read(parser(), pieces, was_cut) == whole
        assert read(parser(), list(text), was_cut) == whole

    check()
