"""Finds the marks that frame the parts of an answer, in text that comes in pieces."""

from collections.abc import Callable

from textmill_router.parsers.answer_writer import AnswerWriter
from textmill_router.parsers.json_value import ValueScanner


class MarkFinder:
    """Hands each mark and the text between marks to a reader. Each mark begins with `<` and has no other `<`.

    `take_text` returns how many characters of a text it takes, which are none only where the reader changes its state.
    """

    __slots__ = ("_marks", "_take_mark", "_take_text", "begun", "num_steps")

    def __init__(
        self, marks: tuple[str, ...], take_text: Callable[[str], int], take_mark: Callable[[str], None]
    ) -> None:
        self._marks = marks
        self._take_text = take_text
        self._take_mark = take_mark
        self.begun = ""  # the characters so far of a mark that has begun
        self.num_steps = 0  # the number of looks at a character

    def read(self, text: str, position: int) -> int:
        """Hand on the next part of `text`, and return the position of the first character that was not looked at."""
        if self.begun:
            return self._read_mark(text, position)
        found = text.find("<", position)
        end = len(text) if found < 0 else found
        self.num_steps += end - position + 1
        if end > position:
            return position + self._take_text(text[position:end])
        self.begun = "<"
        return end + 1

    def _read_mark(self, text: str, position: int) -> int:
        self.num_steps += 1
        mark = self.begun + text[position]
        if not any(known.startswith(mark) for known in self._marks):
            held, self.begun = self.begun, ""
            self.give(held)
            return position  # the character may begin another mark
        self.begun = mark
        if mark in self._marks:
            self.begun = ""
            self._take_mark(mark)
        return position + 1

    def read_object(self, text: str, position: int, arguments: "ObjectArguments") -> int:
        """Give on the arguments of a call up to their end or to a `<` outside strings, which may begin a mark."""
        end = arguments.read(text, position)
        self.num_steps += end - position + 1
        if arguments.is_done or end == len(text):
            return end
        self.begun = "<"
        return end + 1

    def give(self, text: str) -> None:
        """Hand on a text in which there is no mark."""
        while text:
            text = text[self._take_text(text) :]


class ObjectArguments:
    """Gives on the JSON object of a call, and ends the call with the object."""

    __slots__ = ("_scanner", "_writer")

    def __init__(self, writer: AnswerWriter) -> None:
        self._writer = writer
        self._scanner = ValueScanner(stops_at_tag=True)

    @property
    def is_done(self) -> bool:
        """Whether the object has ended."""
        return self._scanner.is_done

    def read(self, text: str, position: int) -> int:
        """Return where the object ends in `text`, else where the reading stopped, as `ValueScanner.scan` does."""
        end = self._scanner.scan(text, position)
        if end > position:
            self._writer.add_arguments(text[position:end])
        if self._scanner.is_done:
            self._writer.close_call()
        return end
