"""The way in which a format writes calls, as data. `grammar/` makes of the data a grammar of just such calls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Text:
    """Exactly this text."""

    text: str


@dataclass(frozen=True, slots=True)
class Marker:
    """A tag, which is the token of that text where the vocabulary has such a token, else the text."""

    text: str


@dataclass(frozen=True, slots=True)
class JsonValue:
    """A JSON value that matches the schema."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextUntil:
    """Text up to and with its first `end`. The text before `end` matches each of the expressions."""

    end: str
    expressions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftToCheck:
    """Nothing is written. The grammar does not hold these keywords of a schema, so that a tool cannot be strict."""

    keywords: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InOrder:
    """One piece after another."""

    pieces: "tuple[Piece, ...]"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of the pieces, of which there is at least one."""

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
    """A piece that stands in several places as one Python object, and that the grammar writes once."""

    piece: "Piece"


Piece = Text | Marker | JsonValue | TextUntil | LeftToCheck | InOrder | OneOf | Maybe | Repeated | Shared


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call of one tool: `head` is fixed text that no text before a call may hold, `rest` what follows it.

    `schema` is that of the whole call where a call is a JSON value: beside a content that is JSON too, a grammar can
    tell the two apart only if it writes both as JSON.
    """

    head: str
    rest: Piece
    name: str = ""  # the tool's name in the spelling of `any_call`
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class CallShape:
    """The calls of an answer: `opening before CALL after closing`, once per call with `between` in the middle.

    In a list all calls share one opening and one closing: `opening before CALL (between CALL)* after closing`.
    """

    write_call: Callable[[str, Mapping[str, Any]], WrittenCall]  # of a tool's name and the schema of its arguments
    opening: str = ""  # a tag; where no tag need stand, `any_call` tells where calls begin
    closing: str = ""
    before: str = ""
    after: str = ""
    between: str = ""
    is_list: bool = False
    any_call: str = ""  # matches the beginning of any call that the reader takes; NAMES stands for the tools' names
