"""Lays out a table and questions about the table as the tokens of TAPAS, outside of the model's thread.

The tokenizer is transformers' own, which runs in Python and needs pandas.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas
import torch
from transformers import TapasTokenizer

from textmill_shard.media.errors import NoMemory
from textmill_shard.tasks.read_faults import failure_of, note_memory
from textmill_shard.tasks.rows import FailureCode, RowFailure, TableRow

# Places in the token types of a token.
SEGMENT, COLUMN, ROW, PREVIOUS = 0, 1, 2, 3
_INSIDE_WORD = "##"  # a word goes on with such a token, and is never cut


@dataclass(frozen=True, slots=True)
class ReadyTable:
    """The tokens of each question with its table.

    `ids` holds a tensor `[n]` of ids for each question, and `types` a tensor `[n, 7]` of token types. `num_kept` are
    the rows of the table that fit beside the question, and `is_cut` says whether words of these rows or of the names
    of the columns were left out, for each question.
    """

    ids: Sequence[torch.Tensor]
    types: Sequence[torch.Tensor]
    num_kept: Sequence[int]
    is_cut: Sequence[bool]
    is_sequential: bool

    @property
    def num_own_tokens(self) -> int:
        """The tokens of all questions, each with its table."""
        return sum(map(len, self.ids))


@dataclass(frozen=True, slots=True)
class TableLimits:
    """The most tokens that a model reads, and the rows and columns for which its embeddings have numbers."""

    max_tokens: int
    max_rows: int
    max_columns: int


class QuickTapasTokenizer(TapasTokenizer):  # type: ignore[misc]  # transformers has no types
    """Gives the tokens of its base class in less time: halves where the base class takes away row after row.

    `noted.fits` gets an entry for each question: the rows of the table that fit, and whether words of these rows or of
    the names of the columns were left out. Each thread has a list of its own.
    """

    noted: threading.local

    def _get_truncated_table_rows(
        self,
        query_tokens: Any,
        tokenized_table: Any,
        num_rows: int,
        num_columns: int,
        max_length: Any,
        truncation_strategy: Any,
    ) -> tuple[int, int]:
        """Return how many rows fit, and how many words of each cell; (0, 1) where no row fits."""

        def num_words(rows: int) -> int | None:
            found: int | None = self._get_max_num_tokens(
                query_tokens, tokenized_table, num_rows=rows, num_columns=num_columns, max_length=max_length
            )
            return found

        fits, found = num_rows, num_words(num_rows)
        if found is None:
            fits, fits_not = 0, num_rows
            while fits_not - fits > 1:
                middle = (fits + fits_not) // 2
                if num_words(middle) is None:
                    fits_not = middle
                else:
                    fits = middle
            found = num_words(fits) if fits else None
        most = found or 1
        behind = (token for row in tokenized_table.rows[: fits + 1] for cell in row for token in cell[most:])
        self.noted.fits.append((fits, not all(token.startswith(_INSIDE_WORD) for token in behind)))
        return fits, most

    def _get_cell_token_indexes(
        self, column_ids: Sequence[int], row_ids: Sequence[int], column_id: int, row_id: int
    ) -> Iterable[int]:
        """Return the places of a cell's tokens; none for a row behind the last that fits (`row_ids` count from 1)."""
        if row_id >= row_ids[-1]:
            return ()
        found: Iterable[int] = super()._get_cell_token_indexes(column_ids, row_ids, column_id, row_id)
        return found

    def _get_column_values(self, table: Any, col_index: int) -> dict[int, Any]:
        """Return the numbers and dates of a column by row."""
        values = {row: cell.numeric_value for row, cell in enumerate(table.iloc[:, col_index])}
        return {row: value for row, value in values.items() if value is not None}


class TableReader:
    """Makes tables ready for a model. Any thread may call `read`."""

    def __init__(self, tokenizer: QuickTapasTokenizer, limits: TableLimits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits

    def read(self, rows: Sequence[TableRow]) -> list[ReadyTable | RowFailure]:
        """Return each table ready, or why the model cannot read the table."""
        return [self._try(row) for row in rows]

    def _try(self, row: TableRow) -> ReadyTable | RowFailure:
        try:
            return note_memory(lambda: self._read(row))
        except NoMemory as error:
            return failure_of(error)

    def _read(self, row: TableRow) -> ReadyTable | RowFailure:
        limits, width = self._limits, len(row.columns)
        if width > limits.max_columns:
            return _refusal(f"the table has {width} columns, and the model reads at most {limits.max_columns}")
        lines = [row.cells[start : start + width] for start in range(0, len(row.cells), width)]
        frame = pandas.DataFrame(lines[: limits.max_rows], columns=list(row.columns), dtype=object)
        self._tokenizer.noted.fits = []
        encoded = self._tokenizer(
            table=frame,
            queries=list(row.questions),
            truncation="drop_rows_to_fit",
            max_length=None,
            padding=False,
        )
        for ids in encoded["input_ids"]:
            if len(ids) > limits.max_tokens:
                return _refusal(
                    f"the question and the names of the columns have {len(ids)} tokens, and the model reads at most "
                    f"{limits.max_tokens}"
                )
        return ReadyTable(
            ids=[torch.tensor(each) for each in encoded["input_ids"]],
            types=[torch.tensor(each) for each in encoded["token_type_ids"]],
            num_kept=[num_rows for num_rows, _ in self._tokenizer.noted.fits],
            is_cut=[is_cut for _, is_cut in self._tokenizer.noted.fits],
            is_sequential=row.is_sequential,
        )


def _refusal(message: str) -> RowFailure:
    return RowFailure(FailureCode.BAD_MEDIA, message)
