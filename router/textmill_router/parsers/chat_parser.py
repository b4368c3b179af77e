"""Turns output text into the parts of a chat message, which are reasoning, tool calls and text, streamed or whole.

The parser is fed with `TokenEvent.released_text` of `text/generation.py`, which holds whole characters only and no stop
string. So a stop string ends the text before the parser sees the string, in reasoning and arguments too, and no delta
ever holds part of a character. `TextOptions.shown_specials` lists the markers that are special tokens, because their
texts must reach the parser.
"""

from collections.abc import Sequence

from textmill_router.parsers.deltas import ContentText, Delta, merge
from textmill_router.parsers.formats import ReasoningFormat
from textmill_router.parsers.reasoning_text import ReasoningReader
from textmill_router.parsers.tools.harmony import ASSISTANT, HARMONY, HarmonyReader
from textmill_router.parsers.tools.tool_format import NewId, ToolFormat, ToolReader, ToolSpec


class ChatParser:
    """Reads one answer by a `push` for each piece of text and one `finish`. The deltas do not depend on the pieces.

    With `tools` None the parser looks for no calls, because the request has no tools or its choice is none; with
    `reasoning` None the parser looks for no reasoning. `specs` are the tools that may be called. `is_reasoning` says
    that the prompt has opened the reasoning already. `begun` is the message that the prompt has begun, where reasoning,
    text and calls are messages in channels.
    """

    __slots__ = ("_reasoning", "_tools")

    def __init__(
        self,
        tools: ToolFormat | None,
        reasoning: ReasoningFormat | None,
        specs: Sequence[ToolSpec] = (),
        *,
        is_reasoning: bool = False,
        begun: str = ASSISTANT,
        new_id: NewId | None = None,
    ) -> None:
        self._reasoning: ReasoningReader | None = None
        self._tools: ToolReader | None = None
        if tools is HARMONY or reasoning is ReasoningFormat.HARMONY:
            self._tools = HarmonyReader(specs if tools is HARMONY else None, new_id or HARMONY.new_id, begun)
            return
        if reasoning is not None:
            self._reasoning = ReasoningReader(reasoning.tags, is_reasoning)
        if tools is not None:
            self._tools = tools.new_reader(specs, new_id or tools.new_id)

    def push(self, text: str) -> list[Delta]:
        """Return what this piece of text sets free: nothing while the text may still become a tag or a call."""
        if self._reasoning is None:
            deltas: list[Delta] = [ContentText(text)] if text else []
        else:
            deltas = self._reasoning.push(text)
        return merge(self._read_tools(deltas))

    def finish(self, was_cut: bool) -> list[Delta]:
        """Return what was held back. `was_cut` says that the limit or a stop string ended the answer, not the model.

        The unfinished beginning of a tag, or of a call in a tag, is dropped from a cut answer; the model's own end
        makes it text.
        """
        deltas = [] if self._reasoning is None else self._reasoning.finish(was_cut)
        deltas = self._read_tools(deltas)
        if self._tools is not None:
            deltas += self._tools.finish(was_cut)
        return merge(deltas)

    @property
    def first_unfinished_call(self) -> int | None:
        """The index of the first call that has begun and whose arguments are no whole JSON object."""
        return None if self._tools is None else self._tools.first_unfinished_call

    @property
    def has_unfinished_call(self) -> bool:
        """Whether a call has begun whose arguments are no whole JSON object."""
        return self.first_unfinished_call is not None

    @property
    def num_steps(self) -> int:
        """The number of looks at a character so far, at most a few for each character pushed."""
        return sum(reader.num_steps for reader in (self._reasoning, self._tools) if reader is not None)

    def _read_tools(self, deltas: list[Delta]) -> list[Delta]:
        if self._tools is None:
            return deltas
        read: list[Delta] = []
        for delta in deltas:
            if isinstance(delta, ContentText):
                read += self._tools.push(delta.text)
            else:
                read.append(delta)
        return read
