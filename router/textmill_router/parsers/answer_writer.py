"""Collects the deltas of one answer while a reader of tool calls finds text, text that must wait, and calls."""

from collections.abc import Callable

from textmill_router.parsers.deltas import ContentText, Delta, ReasoningText, ToolArguments, ToolCallStart

SPACES = " \t\r\n"


class AnswerWriter:
    """Keeps text back while the text may still become a call, and numbers the calls.

    Spaces around calls are dropped; text that begins after a call and has none before loses its leading spaces.
    """

    __slots__ = ("_has_reasoning", "_has_text", "_held", "_held_reasoning", "_new_id", "_out", "num_calls")

    def __init__(self, new_id: Callable[[], str]) -> None:
        """Take `new_id`, which makes the id of the next call."""
        self._new_id = new_id
        self._held: list[str] = []  # spaces, then text that may be a call
        self._has_text = False
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

    def release(self) -> None:
        """Give on the text that was kept back."""
        text = "".join(self._held)
        self._held.clear()
        if self.num_calls and not self._has_text:
            text = text.lstrip(SPACES)
        if text:
            self._has_text = True
            self._out.append(ContentText(text))

    def drop(self) -> None:
        """Forget the text that was kept back, because the text was a part of a call or spaces beside a call."""
        self._held.clear()

    def start_call(self, name: str) -> None:
        """Begin the next call, to which the text that was kept back belongs."""
        self._held.clear()
        self._out.append(ToolCallStart(self.num_calls, self._new_id(), name))
        self.num_calls += 1

    def add_arguments(self, text: str) -> None:
        """Give on more JSON text of the arguments of the last call. The text is not empty."""
        self._out.append(ToolArguments(self.num_calls - 1, text))

    def take(self) -> list[Delta]:
        """Return the deltas since the last take."""
        out, self._out = self._out, []
        return out
