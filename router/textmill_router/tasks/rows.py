"""Rows of models that do not generate.

A row is one input: a text, a pair of texts, a window of a text, a file, a table with questions, or a text that the
tokenizer of the shard reads.
"""

from array import array
from dataclasses import dataclass, field

from textmill_router.tasks.wishes import HEAD_OF, Head, Wish


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `token_types` has a byte per token, or is empty where all are 0."""

    token_ids: "array[int]"  # type code I
    wish: Wish
    token_types: bytes = b""

    @property
    def head(self) -> Head:
        return HEAD_OF[type(self.wish)]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def size(self) -> int:
        """The room that the row takes in a batch: tokens."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class FileRow:
    """An image or audio as the client sent it. `path` names the row in an error, as in `inputs[3]`.

    `texts` are about the file, for example a question or labels; the shard reads the texts together with the file.
    `texts_path` names them in an error.
    """

    file: bytes = field(repr=False)
    wish: Wish
    path: str
    texts: tuple[str, ...] = field(default=(), repr=False)
    texts_path: str = ""

    @property
    def head(self) -> Head:
        return HEAD_OF[type(self.wish)]

    @property
    def num_tokens(self) -> int:
        return 0

    @property
    def size(self) -> int:
        """The room that the row takes in a batch: bytes."""
        return len(self.file) + sum(len(text.encode()) for text in self.texts)


@dataclass(frozen=True, slots=True)
class TableRow:
    """A table by the names of its columns and its cells, row after row, with questions about the table.

    `path` names the row in an error, as in `inputs[3]`. `is_sequential`: each question follows the one before.
    """

    columns: tuple[str, ...] = field(repr=False)
    cells: tuple[str, ...] = field(repr=False)
    questions: tuple[str, ...] = field(repr=False)
    is_sequential: bool
    wish: Wish
    path: str

    @property
    def head(self) -> Head:
        return HEAD_OF[type(self.wish)]

    @property
    def num_tokens(self) -> int:
        return 0

    @property
    def size(self) -> int:
        """The room that the row takes in a batch: about its bytes."""
        return sum(map(len, (*self.columns, *self.cells, *self.questions)))


@dataclass(frozen=True, slots=True)
class StringRow:
    """A text that the tokenizer of the shard reads. `path` names the row in an error."""

    text: str
    wish: Wish
    path: str

    @property
    def head(self) -> Head:
        return HEAD_OF[type(self.wish)]

    @property
    def num_tokens(self) -> int:
        return 0

    @property
    def size(self) -> int:
        """The room that the row takes in a batch: characters."""
        return len(self.text)


AnyRow = Row | FileRow | TableRow | StringRow
