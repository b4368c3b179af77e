"""Collects the deltas of one answer while a reader of tool calls finds text, text that must wait, and calls."""

from textmill_router.parsers.deltas import ContentText, Delta, ReasoningText, ToolArguments, ToolCallStart
from textmill_router.parsers.tools.tool_format import NewId
from textmill_router.parsers.whole_json import closing_brackets

SPACES = " \t\r\n"


class AnswerWriter:
    """Keeps text back while the text may still become a call, and numbers the calls.

    Spaces around calls are dropped; text that begins after a call and has none before loses its leading spaces.
    A call is open from `start_call` to `close_call`.
    """

    __slots__ = (
        "_arguments",
        "_has_reasoning",
        "_held",
        "_held_reasoning",
        "_ids",
        "_is_open",
        "_new_id",
        "_out",
        "first_unfinished_call",
        "has_text",
        "num_calls",
    )

    def __init__(self, new_id: NewId) -> None:
        """Take `new_id`, which makes the id of a call from the tool's name and the number of calls before."""
        self._new_id = new_id
        self._ids: set[str] = set()
        self._arguments: list[str] = []  # of the call that is open
        self._is_open = False
        self.first_unfinished_call: int | None = None  # its index, if a call's arguments are no whole JSON object
        self._held: list[str] = []  # spaces, then text that may be a call
        self.has_text = False  # text other than spaces has been given on
        self._held_reasoning: list[str] = []  # spaces
        self._has_reasoning = False
        self._out: list[Delta] = []
        self.num_calls = 0

    def hold(self, text: str) -> None:
        """Keep this text back until `release` or `drop`."""
        self._held.append(text)

    def add_text(self, text: str) -> None:
        """Give this text on. Spaces at the end of the text wait, because they count only if more text follows."""
        body = text.rstrip(SPACES)
        if body:
            self._held.append(body)
            self.release()
        if len(body) < len(text):
            self._held.append(text[len(body) :])

    def add_reasoning(self, text: str) -> None:
        """Give this reasoning on without spaces around all of the reasoning, so that spaces at an end wait for more."""
        body = text.rstrip(SPACES)
        if body:
            given = "".join(self._held_reasoning) + body
            self._held_reasoning.clear()
            self._out.append(ReasoningText(given if self._has_reasoning else given.lstrip(SPACES)))
            self._has_reasoning = True
        if len(body) < len(text):
            self._held_reasoning.append(text[len(body) :])

    def release(self, *, without: str = "") -> None:
        """Give on the text that was kept back, without the beginning of a tag at the end of a cut answer."""
        text = "".join(self._held).removesuffix(without)
        self._held.clear()
        if self.num_calls and not self.has_text:
            text = text.lstrip(SPACES)
        if text:
            self.has_text = True
            self._out.append(ContentText(text))

    def drop(self) -> None:
        """Forget the text that was kept back, because the text was a part of a call or spaces beside a call."""
        self._held.clear()

    def start_call(self, name: str, written_id: str = "") -> None:
        """Begin the next call, to which the text that was kept back belongs. A call before it ends.

        `written_id` is the id that the model wrote, which the call gets unless another call of the answer has that id.
        """
        self.close_call()
        self._held.clear()
        call_id = written_id
        if not call_id or call_id in self._ids:
            call_id = self._new_id(name, self.num_calls)
        self._ids.add(call_id)
        self._out.append(ToolCallStart(self.num_calls, call_id, name))
        self.num_calls += 1
        self._arguments.clear()
        self._is_open = True
        if self.first_unfinished_call is None:
            self.first_unfinished_call = self.num_calls - 1

    def add_arguments(self, text: str) -> None:
        """Give on more JSON text of the arguments of the call that is open. The text is not empty."""
        self._arguments.append(text)
        self._out.append(ToolArguments(self.num_calls - 1, text))

    def close_call(self, *, is_whole: bool = True) -> None:
        """End the call that is open, with the brackets that its arguments lack. Where none is open nothing happens.

        Without `is_whole` the model has broken the call off, so that the call counts as unfinished.
        """
        if not self._is_open:
            return
        self._is_open = False
        brackets = closing_brackets("".join(self._arguments))
        if brackets:
            self.add_arguments(brackets)
        if is_whole and brackets is not None and self.first_unfinished_call == self.num_calls - 1:
            self.first_unfinished_call = None

    def take(self) -> list[Delta]:
        """Return the deltas since the last take."""
        out, self._out = self._out, []
        return out
