"""Splits an answer into the reasoning at its start and the text that follows, in one pass."""

from enum import Enum

from textmill_router.parsers.deltas import ContentText, Delta, ReasoningText
from textmill_router.parsers.formats import ReasoningTags

_SPACES = " \t\r\n"


class _State(Enum):
    START = 0  # nothing but spaces and the beginning of the opening tag has come
    INSIDE = 1
    BEHIND = 2  # after the closing tag: spaces are dropped
    OUTSIDE = 3


class ReasoningReader:
    """Reads reasoning, which stands first or not at all, so that a tag later in the answer is text.

    Spaces around both tags are dropped. `is_inside` says that the prompt has opened the reasoning; a model that opens
    the reasoning again does no harm.
    """

    __slots__ = ("_has_reasoning", "_is_inside", "_mark", "_out", "_spaces", "_state", "_tags", "num_steps")

    def __init__(self, tags: ReasoningTags, is_inside: bool) -> None:
        self._tags = tags
        self._is_inside = is_inside
        self._state = _State.START
        self._spaces: list[str] = []  # held back
        self._mark = ""  # the characters so far of a tag that has begun
        self._has_reasoning = False
        self._out: list[Delta] = []
        self.num_steps = 0  # the number of looks at a character

    def push(self, text: str) -> list[Delta]:
        """Return the reasoning and the text that this piece brings. Calls are still in the text."""
        position = 0
        while position < len(text):
            match self._state:
                case _State.START:
                    position = self._read_start(text, position)
                case _State.INSIDE:
                    position = self._read_inside(text, position)
                case _State.BEHIND:
                    self.num_steps += 1
                    if text[position] in _SPACES:
                        position += 1
                    else:
                        self._state = _State.OUTSIDE
                case _State.OUTSIDE:
                    position = self._read_outside(text, position)
        out, self._out = self._out, []
        return out

    def finish(self, was_cut: bool) -> list[Delta]:
        """Return the deltas held back. A cut answer loses a tag that has only begun."""
        mark = "" if was_cut else self._mark
        if self._state is _State.OUTSIDE or (self._state is _State.START and not self._is_inside):
            text = "".join(self._spaces) + mark
            if text:
                self._out.append(ContentText(text))
        elif mark:
            self._add_reasoning(mark)
        out, self._out = self._out, []
        return out

    def _read_start(self, text: str, position: int) -> int:
        self.num_steps += 1
        char = text[position]
        mark = self._mark + char
        if self._tags.opening.startswith(mark):
            self._mark = mark
            if mark == self._tags.opening:
                self._mark = ""
                self._spaces.clear()
                self._state = _State.INSIDE
            return position + 1
        if not self._mark and char in _SPACES:
            self._spaces.append(char)
            return position + 1
        if self._is_inside:
            self._spaces.clear()
            self._state = _State.INSIDE
            return position  # the method of that state judges a mark that may begin the closing tag
        held = "".join(self._spaces) + self._mark
        if held:
            self._out.append(ContentText(held))
        self._spaces.clear()
        self._mark = ""
        self._state = _State.OUTSIDE
        return position

    def _read_inside(self, text: str, position: int) -> int:
        closing = self._tags.closing
        if self._mark:
            self.num_steps += 1
            mark = self._mark + text[position]
            if closing.startswith(mark):
                self._mark = mark
                if mark == closing:
                    self._mark = ""
                    self._spaces.clear()
                    self._state = _State.BEHIND
                return position + 1
            held, self._mark = self._mark, ""
            self._add_reasoning(held)
            return position
        found = text.find(closing[0], position)
        end = len(text) if found < 0 else found
        self.num_steps += end - position + 1
        self._add_reasoning(text[position:end])
        if found < 0:
            return end
        self._mark = closing[0]
        return end + 1

    def _read_outside(self, text: str, position: int) -> int:
        """Read text, in which tags are text. A tag is held back only so that a cut answer has no half of a tag."""
        if self._mark:
            self.num_steps += 1
            mark = self._mark + text[position]
            tags = self._tags
            is_whole = mark in (tags.opening, tags.closing)
            if not is_whole and (tags.opening.startswith(mark) or tags.closing.startswith(mark)):
                self._mark = mark
                return position + 1
            self._out.append(ContentText(mark if is_whole else self._mark))
            self._mark = ""
            return position + is_whole
        found = text.find(self._tags.opening[0], position)
        end = len(text) if found < 0 else found
        self.num_steps += end - position + 1
        if end > position:
            self._out.append(ContentText(text[position:end]))
        if found < 0:
            return end
        self._mark = text[end]
        return end + 1

    def _add_reasoning(self, text: str) -> None:
        """Give this reasoning on. Spaces at the end wait, because they are reasoning only if more reasoning follows."""
        body = text.rstrip(_SPACES)
        if body:
            self._spaces.append(body)
            given = "".join(self._spaces)
            self._spaces.clear()
            if not self._has_reasoning:
                given = given.lstrip(_SPACES)
            self._has_reasoning = True
            self._out.append(ReasoningText(given))
        if len(body) < len(text):
            self._spaces.append(text[len(body) :])
