"""How a format writes calls, as data: the grammar folder makes of it a grammar that lets nothing else through."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Text:
    """Exactly this text."""

    text: str


@dataclass(frozen=True, slots=True)
class Marker:
    """A tag: the token of that text where the vocabulary has one, else the text."""

    text: str


@dataclass(frozen=True, slots=True)
class JsonValue:
    """A JSON value that matches the schema."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextUntil:
    """Text up to its first `end`, which is part of it; before `end` stands a match of each of the expressions."""

    end: str
    expressions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InOrder:
    """One piece after another."""

    pieces: "tuple[Piece, ...]"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of the pieces; there is at least one."""

    pieces: "tuple[Piece, ...]"


@dataclass(frozen=True, slots=True)
class Maybe:
    """The piece or nothing."""

    piece: "Piece"


@dataclass(frozen=True, slots=True)
class Repeated:
    """The piece any number of times, also never."""

    piece: "Piece"


@dataclass(frozen=True, slots=True)
class Shared:
    """A piece that stands in several places, as the same object: the grammar writes it once."""

    piece: "Piece"


Piece = Text | Marker | JsonValue | TextUntil | InOrder | OneOf | Maybe | Repeated | Shared


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call of one tool: `head` is fixed text that no text before a call may hold, `rest` what follows it.

    `schema` is that of the whole call where a call is a JSON value: beside a content that is JSON too, a grammar can
    tell the two apart only if it writes both as JSON.
    """

    head: str
    rest: Piece
    name: str = ""  # the tool's name as `any_call` wants it
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class CallShape:
    """The calls of an answer: `opening before CALL after closing`, once per call with `between` in the middle.

    In a list all calls share one opening and one closing: `opening before CALL (between CALL)* after closing`.
    """

    write_call: Callable[[str, Mapping[str, Any]], WrittenCall]  # of a tool's name and the schema of its arguments
    opening: str = ""  # a tag; where it is empty, or may be left out, `any_call` tells where calls begin
    closing: str = ""
    before: str = ""
    after: str = ""
    between: str = ""
    is_list: bool = False
    any_call: str = ""  # expression of how any call may begin that the format's reader takes; NAMES are those of tools
