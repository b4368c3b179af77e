"""A step is cut into neighbours with one token each and into chunks, in the order of the step."""

from dataclasses import replace

import pytest
import torch
from textmill_shard.layouts.sub_batches import cut_into_sub_batches
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch


def step_of(*lengths: int, num_padding: int = 0, start: int = 2) -> ForwardBatch:
    """Return a step whose ids are 0, 1, 2 ..., of rows that have computed `start` tokens before."""
    firsts = [sum(lengths[:row]) for row in range(len(lengths))]
    rows = [
        SyntheticRow(torch.arange(first, first + length), [row], start, num_logits=1)
        for row, (first, length) in enumerate(zip(firsts, lengths, strict=True))
    ]
    return synthetic_batch(rows, block_size=8, num_padding=num_padding)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((1,), [[0]]),
        ((1, 1, 1), [[0, 1, 2]]),
        ((4,), [[0, 1, 2, 3]]),
        ((1, 1, 3, 2), [[0, 1], [2, 3, 4], [5, 6]]),
        ((1, 3, 1, 1, 2, 1), [[0], [1, 2, 3], [4, 5], [6, 7], [8]]),
    ],
)
@pytest.mark.parametrize("num_padding", [0, 3])
def test_sub_batches_hold_the_tokens_in_the_order_of_the_step(
    lengths: tuple[int, ...], expected: list[list[int]], num_padding: int
) -> None:
    found = cut_into_sub_batches(step_of(*lengths, num_padding=num_padding))
    assert [sub_batch.batch.input_ids_T.tolist() for sub_batch in found] == expected
    assert sum(sub_batch.num_sequences for sub_batch in found) == len(lengths)
    assert sum(len(sub_batch.batch.logit_rows_N) for sub_batch in found) == len(lengths)
    assert not any(sub_batch.is_fresh_B.any() for sub_batch in found)


def test_a_sub_batch_that_is_the_step_is_not_copied() -> None:
    for lengths in ((1, 1), (5,)):
        step = step_of(*lengths, start=0)
        [sub_batch] = cut_into_sub_batches(step)
        assert sub_batch.batch is step
        assert sub_batch.is_fresh_B.all()


def test_a_token_that_an_encoder_reads_is_a_chunk() -> None:
    step = step_of(1, 1, start=0)
    assert len(cut_into_sub_batches(replace(step, encoder_lens_R=torch.tensor([1, 1])))) == 2
