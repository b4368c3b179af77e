"""Computes the rows of a batch, in as few forward passes as their lengths and the memory allow."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from textmill_shard.device import is_device_gone
from textmill_shard.engine.memory_faults import is_out_of_memory
from textmill_shard.model.system_memory import free_device_memory
from textmill_shard.probing.start_check import CALL_ERRORS
from textmill_shard.tasks.heads import Head
from textmill_shard.tasks.row_forward import RowForward, RowLayout
from textmill_shard.tasks.rows import Answer, FailureCode, HeadName, Row, RowFailure

# Where everything runs over the padded grid, shorter rows leave it once they would pad more than this many tokens.
MAX_PADDING_TOKENS = 128
# Where only embeddings and heads run over the padded grid, the grid may have this many times the tokens of its rows.
MAX_FLAT_GRID_FACTOR = 4
# Numbers of the largest tensor of logits over the vocabulary: 256 MiB in float32.
MAX_LOGITS = 1 << 26


class RowRunner:
    """The heads of a model over its forward pass. One thread calls the runner."""

    def __init__(self, forward: RowForward, heads: Mapping[HeadName, Head], *, vocab_size: int) -> None:
        self.forward = forward
        self._heads = heads
        self._vocab_size = vocab_size
        self.num_memory_faults = 0  # forward passes that ran out of memory

    @torch.inference_mode()
    def run(
        self, head: HeadName, rows: Sequence[Row], *, on_part: Callable[[int], None] = lambda num_tokens: None
    ) -> list[Answer | RowFailure]:
        """Return the answers in the order of the rows.

        `on_part` is told the tokens of the longest row of each forward pass before the pass begins.
        """
        order = sorted(range(len(rows)), key=lambda index: -rows[index].num_tokens)
        max_tokens = MAX_LOGITS // self._vocab_size if head is HeadName.SPARSE_VECTORS else None
        answers: dict[int, Answer | RowFailure] = {}
        for part in cut_rows([rows[index].num_tokens for index in order], self.forward.layout, max_tokens=max_tokens):
            indices = [order[place] for place in part]
            found = self._compute(self._heads[head], [rows[index] for index in indices], on_part)
            answers.update(zip(indices, found, strict=True))
        return [answers[index] for index in range(len(rows))]

    def _compute(self, head: Head, rows: Sequence[Row], on_part: Callable[[int], None]) -> list[Answer | RowFailure]:
        """Compute the rows together. Where that fails, compute each half by itself, down to single rows."""
        on_part(max(row.num_tokens for row in rows))
        try:
            return head.compute(self.forward, rows)
        except Exception as error:
            has_no_memory = is_out_of_memory(error)
            if not has_no_memory and not _is_of_rows(error):
                raise
            self.num_memory_faults += has_no_memory
            failure = _failure(error, rows[0], has_no_memory=has_no_memory)
        if len(rows) == 1:
            return [failure]
        free_device_memory(self.forward.device)
        middle = len(rows) // 2
        return [*self._compute(head, rows[:middle], on_part), *self._compute(head, rows[middle:], on_part)]


def cut_rows(lengths: Sequence[int], layout: RowLayout, *, max_tokens: int | None = None) -> Iterator[range]:
    """Yield the rows of each forward pass, of lengths that fall from row to row.

    `max_tokens` bounds the tokens of the padded grid of several rows.
    """
    start = 0
    num_tokens = 0
    for index, length in enumerate(lengths):
        num_rows = index - start + 1
        grid = lengths[start] * num_rows
        num_tokens += length
        is_too_sparse = (
            grid > MAX_FLAT_GRID_FACTOR * num_tokens
            if layout is RowLayout.FLAT
            else (lengths[start] - length) * (len(lengths) - index) > MAX_PADDING_TOKENS
        )
        if num_rows > 1 and (
            layout is RowLayout.ALONE or is_too_sparse or (max_tokens is not None and grid > max_tokens)
        ):
            yield range(start, index)
            start, num_tokens = index, length
    if lengths:
        yield range(start, len(lengths))


def _is_of_rows(error: Exception) -> bool:
    """Whether modelling code raised this at rows that it cannot take, or cannot take beside each other."""
    return isinstance(error, CALL_ERRORS) and not is_device_gone(error)


def _failure(error: Exception, row: Row, *, has_no_memory: bool) -> RowFailure:
    if has_no_memory:
        return RowFailure(
            FailureCode.NO_MEMORY, f"there is no memory for an input of {row.num_tokens} tokens, even without others"
        )
    return RowFailure(FailureCode.INTERNAL, f"the model cannot read this input ({type(error).__name__}: {error})")
