"""table-question-answering: the cells of a table that answer a question, and what is to be done with them.

A table of JSON is read as texts: numbers and booleans as JSON writes them, and null as an empty text. The shard lays
out the table and drops rows from the end where the table is too long for the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import Answer, CallNotes, ClientShapes
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import CellAnswer, CellChoice, RowResult
from textmill_router.tasks.rows import TableRow
from textmill_router.tasks.wishes import CellWish

TASK = "table-question-answering"
# The tokenizer of TAPAS runs in Python, for about half a millisecond a cell, and a model reads some hundred cells.
MAX_CELLS = 4096
MAX_CHARACTERS = 100_000  # of all cells and names
MAX_TEXT_CHARACTERS = 4000  # of a cell, a name or a question
MAX_SEQUENCE = 32  # questions of a sequence, which run as one row
NO_LABEL = "NONE"


class TableInputs(msgspec.Struct, gc=False):
    """A table by columns, and a question or several. `question` is read too."""

    table: dict[str, list[msgspec.Raw]]
    query: str | list[str] | None = None
    question: str | list[str] | None = None  # the name that some clients send


class TableParameters(msgspec.Struct, gc=False):
    """The parameters of table-question-answering. `padding` and `truncation` change no answer."""

    sequential: bool | None = None
    padding: bool | str | None = None
    truncation: bool | str | None = None


class TableBody(msgspec.Struct, gc=False):
    """The body of table-question-answering."""

    inputs: TableInputs | list[TableInputs]
    parameters: TableParameters | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts, and its questions. `cells` are row after row, `is_list`: the questions came as a list."""

    columns: tuple[str, ...]
    cells: tuple[str, ...]
    questions: tuple[str, ...]
    is_list: bool
    path: str

    @property
    def num_rows(self) -> int:
        return len(self.cells) // len(self.columns)

    @property
    def num_characters(self) -> int:
        return sum(map(len, (*self.columns, *self.cells, *self.questions)))


@dataclass(slots=True)
class TableCall:
    """A call with a row for each question, or for each table whose questions follow one another."""

    tables: Sequence[Table]
    labels: Sequence[str]
    is_single: bool
    is_sequential: bool
    task: str = TASK
    notes: CallNotes = field(default_factory=CallNotes)

    @property
    def num_rows(self) -> int:
        return sum(len(table.questions) for table in self.tables)

    @property
    def num_characters(self) -> int:
        return sum(table.num_characters for table in self.tables)

    async def rows(self) -> list[TableRow]:
        return [
            TableRow(table.columns, table.cells, questions, self.is_sequential, CellWish(), table.path)
            for table in self.tables
            for questions in self._turns(table)
        ]

    def _turns(self, table: Table) -> list[tuple[str, ...]]:
        return [table.questions] if self.is_sequential else [(question,) for question in table.questions]

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        choices = iter(choice for result in results if isinstance(result, CellAnswer) for choice in result.choices)
        answers: list[object] = []
        for table in self.tables:
            found = [self._answer_of(table, next(choices)) for _ in table.questions]
            answers.append(found if table.is_list else found[0])
        return Answer(answers[0] if self.is_single else answers)

    def _answer_of(self, table: Table, choice: CellChoice) -> dict[str, object]:
        self.notes.num_truncated += choice.is_cut or choice.num_kept < table.num_rows
        width = len(table.columns)
        cells = [table.cells[row * width + column] for row, column in choice.cells]
        label = NO_LABEL if choice.label_id is None else self.labels[choice.label_id]
        prefix = "" if choice.is_plain else f"{label} > "
        return {
            "answer": prefix + ", ".join(cells),
            "coordinates": [list(place) for place in choice.cells],
            "cells": cells,
            "aggregator": label,
        }


def table_call(body: TableBody, model: TaskModel, shapes: ClientShapes) -> TableCall:
    """Apply the rules of table-question-answering. Raises ValidationFailed and TooManyRows."""
    inputs = [body.inputs] if isinstance(body.inputs, TableInputs) else body.inputs
    is_single = isinstance(body.inputs, TableInputs)
    is_sequential = bool(body.parameters is not None and body.parameters.sequential)
    if not is_single:
        model.check_count(len(inputs), "inputs")
    questions = [
        _questions_of(one, "inputs" if is_single else f"inputs[{index}]", is_sequential)
        for index, one in enumerate(inputs)
    ]
    model.check_count(sum(map(len, questions)), "inputs.query" if is_single else "inputs")
    tables = []
    for index, (one, asked) in enumerate(zip(inputs, questions, strict=True)):
        path = "inputs" if is_single else f"inputs[{index}]"
        wish = one.query if one.query is not None else one.question
        columns, cells = _texts_of(one.table, f"{path}.table")
        tables.append(Table(columns, cells, asked, isinstance(wish, list), path))
    return TableCall(tables, model.facts.labels, is_single, is_sequential)


def _questions_of(inputs: TableInputs, path: str, is_sequential: bool) -> tuple[str, ...]:
    name = "query" if inputs.query is not None or inputs.question is None else "question"
    wish = inputs.query if name == "query" else inputs.question
    path = f"{path}.{name}"
    if wish is None:
        raise ValidationFailed(f"`{path}` is missing; send a question, or a list of questions", field=path)
    questions = (wish,) if isinstance(wish, str) else tuple(wish)
    if not questions:
        raise ValidationFailed(f"`{path}` must hold at least one question, found an empty list", field=path)
    if is_sequential and len(questions) > MAX_SEQUENCE:
        raise ValidationFailed(
            f"`{path}` has {len(questions)} questions, and with `parameters.sequential` the most is {MAX_SEQUENCE}",
            field=path,
        )
    for index, question in enumerate(questions):
        own_path = path if isinstance(wish, str) else f"{path}[{index}]"
        if not question.strip():
            raise ValidationFailed(f"`{own_path}` must not be empty", field=own_path)
        _check_length(question, own_path)
    return questions


def _texts_of(table: dict[str, list[msgspec.Raw]], path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the columns, and the cells row after row. Raises ValidationFailed."""
    columns = list(table.values())
    if not columns:
        raise ValidationFailed(
            f"`{path}` has no column; send an object with a list of cells for each column", field=path
        )
    num_rows = len(columns[0])
    for name, column in table.items():
        if len(column) != num_rows:
            first = next(iter(table))
            raise ValidationFailed(
                f"`{path}` has columns of different lengths: {first[:64]!r} has {num_rows} cells, and {name[:64]!r} "
                f"has {len(column)}",
                field=path,
            )
    if not num_rows:
        raise ValidationFailed(f"`{path}` has no row; send at least one cell for each column", field=path)
    if num_rows * len(columns) > MAX_CELLS:
        raise ValidationFailed(
            f"`{path}` has {num_rows * len(columns)} cells, and a table has at most {MAX_CELLS}; send the rows that "
            "matter",
            field=path,
        )
    for name in table:
        _check_length(name, f"{path} (the name of a column)")
    read = [
        [_text_of(cell, name, number, path) for number, cell in enumerate(column)] for name, column in table.items()
    ]
    cells = tuple(column[row] for row in range(num_rows) for column in read)
    num_characters = sum(map(len, table)) + sum(map(len, cells))
    if num_characters > MAX_CHARACTERS:
        raise ValidationFailed(
            f"`{path}` has {num_characters} characters, and a table has at most {MAX_CHARACTERS}; send the rows that "
            "matter",
            field=path,
        )
    return tuple(table), cells


def _text_of(cell: msgspec.Raw, column: str, row: int, path: str) -> str:
    """Return the text of a cell, with numbers and booleans as JSON writes them."""
    text = bytes(cell).decode().strip()
    place = f"{path}[{column[:64]!r}][{row}]"
    if text[:1] in ("{", "["):
        raise ValidationFailed(
            f"`{place}` must be a text, a number, true, false or null, found {text[:40]}", field=path
        )
    if text == "null":
        return ""
    found = msgspec.json.decode(text, type=str) if text[:1] == '"' else text
    _check_length(found, place)
    return found


def _check_length(text: str, path: str) -> None:
    if len(text) > MAX_TEXT_CHARACTERS:
        raise ValidationFailed(
            f"`{path}` has {len(text)} characters, and a text of a table has at most {MAX_TEXT_CHARACTERS}", field=path
        )
