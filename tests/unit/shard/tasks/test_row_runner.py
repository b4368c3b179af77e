"""How rows are divided into forward passes, and what becomes of rows that fail."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from textmill_shard.tasks.row_forward import RowLayout
from textmill_shard.tasks.row_runner import MAX_FLAT_GRID_FACTOR, MAX_PADDING_TOKENS, RowRunner, cut_rows
from textmill_shard.tasks.rows import Answer, FailureCode, HeadName, Row, RowFailure


def cut(lengths: Sequence[int], layout: RowLayout, **limits: int) -> list[list[int]]:
    return [[lengths[index] for index in part] for part in cut_rows(lengths, layout, **limits)]


def test_rows_run_alone_where_the_model_mixes_rows() -> None:
    assert cut([5, 5, 3], RowLayout.ALONE) == [[5], [5], [3]]


def test_padded_rows_leave_once_they_would_pad_too_much() -> None:
    assert cut([100, 90, 10, 10], RowLayout.PADDED) == [[100, 90], [10, 10]]
    assert cut([20, 18, 10, 10], RowLayout.PADDED) == [[20, 18, 10, 10]]
    assert cut([512, 6, 6], RowLayout.PADDED) == [[512], [6, 6]]


def test_flat_rows_run_together_unless_the_grid_would_be_nearly_empty() -> None:
    assert cut([100, 90, 10, 10], RowLayout.FLAT) == [[100, 90, 10, 10]]
    assert cut([512, *[6] * 9], RowLayout.FLAT) == [[512, 6, 6, 6], [6] * 6]


@pytest.mark.parametrize("layout", RowLayout)
@pytest.mark.parametrize("seed", range(5))
def test_every_row_runs_once_and_within_the_bounds(layout: RowLayout, seed: int) -> None:
    lengths = sorted(np.random.default_rng(seed).integers(1, 500, size=60).tolist(), reverse=True)
    parts = cut(lengths, layout, max_tokens=2000)
    assert [length for part in parts for length in part] == lengths
    for part in parts:
        grid = part[0] * len(part)
        assert len(part) == 1 or grid <= 2000
        if layout is RowLayout.FLAT:
            assert grid <= MAX_FLAT_GRID_FACTOR * sum(part)
        if layout is RowLayout.PADDED:
            assert len(part) == 1 or (part[0] - part[-1]) <= MAX_PADDING_TOKENS


class Forward:
    """Stands for a model on a CPU, whose layout is padded."""

    layout = RowLayout.PADDED
    device = torch.device("cpu")


class FussyHead:
    """Answers with the first id of a row, and fails by `error` for any pass that `is_bad` names."""

    def __init__(self, error: Exception, *, max_rows: int = 99, bad_id: int | None = None) -> None:
        self.error = error
        self.max_rows = max_rows
        self.bad_id = bad_id
        self.passes: list[int] = []

    def compute(self, forward: object, rows: Sequence[Row]) -> list[Answer | RowFailure]:
        self.passes.append(len(rows))
        if len(rows) > self.max_rows or any(self.bad_id in row.token_ids for row in rows):
            raise self.error
        return [np.array([row.token_ids[0]], np.float32) for row in rows]


def runner(head: FussyHead) -> RowRunner:
    return RowRunner(Forward(), {HeadName.LABELS: head}, vocab_size=10)  # type: ignore[arg-type]


def rows(*first_ids: int) -> list[Row]:
    return [Row(np.array([first, 1, 1]), None) for first in first_ids]


NO_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")


def test_a_pass_without_memory_runs_again_in_halves() -> None:
    head = FussyHead(NO_MEMORY, max_rows=2)
    found = runner(head).run(HeadName.LABELS, rows(4, 5, 6, 7))
    assert [answer.tolist() for answer in found if isinstance(answer, np.ndarray)] == [[4.0], [5.0], [6.0], [7.0]]
    assert head.passes == [4, 2, 2]


def test_a_row_that_has_no_memory_alone_fails_alone() -> None:
    head = FussyHead(NO_MEMORY, bad_id=6)
    tried = runner(head)
    found = tried.run(HeadName.LABELS, rows(4, 5, 6, 7))
    assert [answer.code if isinstance(answer, RowFailure) else None for answer in found] == [
        *(None, None),
        *(FailureCode.NO_MEMORY, None),
    ]
    assert tried.num_memory_faults == 3


def test_a_row_that_the_code_cannot_read_fails_alone() -> None:
    found = runner(FussyHead(ValueError("no end token"), bad_id=4)).run(HeadName.LABELS, rows(4, 5))
    assert isinstance(found[0], RowFailure)
    assert (found[0].code, "no end token" in found[0].message) == (FailureCode.INTERNAL, True)
    assert not isinstance(found[1], RowFailure)


def test_a_fault_of_the_device_is_no_fault_of_a_row() -> None:
    with pytest.raises(torch.AcceleratorError):
        runner(FussyHead(torch.AcceleratorError("an illegal memory access"), bad_id=4)).run(HeadName.LABELS, rows(4, 5))


def test_answers_stand_in_the_order_of_the_rows() -> None:
    mixed = [Row(np.full(length, length), None) for length in (3, 300, 1, 40)]
    found = runner(FussyHead(NO_MEMORY)).run(HeadName.LABELS, mixed)
    assert [float(answer[0]) for answer in found if isinstance(answer, np.ndarray)] == [3.0, 300.0, 1.0, 40.0]
