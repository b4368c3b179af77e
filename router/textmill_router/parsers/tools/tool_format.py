"""The parts of a format of tool calls, and the description of a tool that a format gets."""

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from textmill_router.parsers.deltas import Delta
from textmill_router.parsers.tools.call_shape import CallShape

NewId = Callable[[str, int], str]  # the id of a call, from the tool's name and the number of calls before it


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool of a request. `parameters` is the schema of the arguments, or None where the request gives none."""

    name: str
    parameters: Mapping[str, Any] | None = None
    is_strict: bool = False


class ToolReader(Protocol):
    """Splits one answer into text and calls, in one pass. The deltas do not depend on the pieces."""

    @property
    def num_steps(self) -> int:
        """The number of looks at a character."""
        ...

    def push(self, text: str) -> list[Delta]:
        """Take more text, and return the deltas that the text sets free."""
        ...

    def finish(self, was_cut: bool) -> list[Delta]:
        """Return the deltas held back. A cut answer loses a tag, or a call in a tag, that has only begun."""
        ...

    @property
    def first_unfinished_call(self) -> int | None:
        """The index of the first call that has begun and whose arguments are no whole JSON object."""
        ...


def call_id(name: str, index: int) -> str:
    """Return an id in the form of OpenAI's ids."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """All that the router knows of one way to write tool calls. `name` and `aliases` are words of --tool-call-parser.

    `markers` are texts that are special tokens in some vocabularies and yet must reach the reader. `is_taught_by` is
    asked with the source of a chat template that takes tools. `shape` is asked with the markers that are tokens; it is
    None where the format frames the whole answer, reasoning and text too.
    """

    name: str
    is_taught_by: Callable[[str], bool]
    new_reader: Callable[[Sequence[ToolSpec], NewId], ToolReader]
    shape: Callable[[Collection[str]], CallShape] | None
    markers: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    new_id: NewId = call_id
