"""A selection of a batch has each tensor as if the step had held the selected sequences only."""

from dataclasses import fields, replace

import pytest
import torch
from textmill_shard.model.forward_batch import ForwardBatch, MediaStep
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch

ROWS = (
    SyntheticRow(torch.tensor([11, 12, 13]), [6, 1], 2, num_logits=2, slot=4, is_long_rope=True, num_encoder=1),
    SyntheticRow(torch.tensor([21]), [2, 3], 5, num_logits=0, slot=0, is_long_rope=False, num_encoder=2),
    SyntheticRow(torch.tensor([31, 32]), [5, 0], 0, num_logits=1, slot=2, is_long_rope=True, num_encoder=0),
)
BLOCK_SIZE = 4


def batch_of(*rows: int, num_padding: int = 0) -> ForwardBatch:
    return synthetic_batch([ROWS[row] for row in rows], block_size=BLOCK_SIZE, num_padding=num_padding)


@pytest.mark.parametrize("rows", [(0,), (1,), (0, 1), (1, 2), (0, 1, 2)], ids=str)
def test_every_tensor_is_that_of_the_rows_alone(rows: tuple[int, ...]) -> None:
    selected = batch_of(0, 1, 2, num_padding=2).select(rows[0], rows[-1] + 1)
    alone = batch_of(*rows)
    for field in fields(ForwardBatch):
        given, expected = getattr(selected, field.name), getattr(alone, field.name)
        if torch.is_tensor(expected):
            assert given.dtype == expected.dtype, field.name
            assert given.tolist() == expected.tolist(), field.name
            assert given.storage_offset() == 0, field.name
    assert selected.max_query_len == alone.max_query_len
    assert selected.on_host is not None
    assert selected.on_host.query_starts == tuple(alone.query_starts.tolist())
    assert selected.on_host.logit_rows == tuple(alone.logit_rows_N.tolist())


def test_tensors_that_a_batch_lacks_stay_absent() -> None:
    row = SyntheticRow(torch.tensor([1]), [0])
    selected = synthetic_batch([row, row], block_size=BLOCK_SIZE).select(1, 2)
    assert selected.slots_R is selected.is_long_rope_T is selected.encoder_lens_R is None


def test_the_rows_of_images_move_with_their_tokens() -> None:
    """Rows 0 and 2 hold placeholders; rotary positions and span ends are those of each row."""

    def of(places: list[int], first: float) -> MediaStep:
        rows_mD = torch.arange(len(places) * 2.0).view(-1, 2) + first
        return MediaStep(torch.tensor(places), rows_mD, torch.stack([rows_mD + 100, rows_mD + 200]))

    rows = (
        replace(ROWS[0], media=of([0, 2], 1.0), span_ends_n=torch.tensor([5, 0, 7], dtype=torch.int32)),
        replace(ROWS[1], rope_positions_3n=torch.tensor([[7], [8], [9]])),
        replace(ROWS[2], media=of([1], 50.0)),
    )
    step = synthetic_batch(rows, block_size=BLOCK_SIZE, num_padding=2)
    assert step.media is not None
    assert step.media.places_m.tolist() == [0, 2, 5]
    selected = step.select(1, 3)
    alone = synthetic_batch(rows[1:], block_size=BLOCK_SIZE)
    assert selected.media is not None
    assert alone.media is not None
    for field in fields(MediaStep):
        assert getattr(selected.media, field.name).tolist() == getattr(alone.media, field.name).tolist(), field.name
    assert selected.span_ends_T is not None
    assert selected.span_ends_T.tolist() == [0, 0, 0]
    first = step.select(0, 2)
    assert first.span_ends_T is not None
    assert first.span_ends_T.tolist() == [5, 0, 7, 0]
    assert step.select(1, 2).media is None
    only = step.select(1, 2).rope_positions_3T
    assert only is not None
    assert only.tolist() == [[7], [8], [9]]
