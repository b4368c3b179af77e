"""Synthetic batches: the places of their tokens, their padding and their fields."""

import pytest
import torch
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch

from tests.fakes.valued_gpu import valued_gpu


def test_rows_lie_end_to_end_and_padding_in_the_scratch_block() -> None:
    chunk = SyntheticRow(ids_n=torch.tensor([5, 6, 7]), blocks=[4, 2], start=3, num_logits=2)
    single = SyntheticRow(ids_n=torch.tensor([8]), blocks=[1], num_logits=1)
    batch = synthetic_batch([chunk, single], block_size=4, scratch_block=9, num_padding=2)
    assert batch.input_ids_T.tolist() == [5, 6, 7, 8, 0, 0]
    assert batch.position_ids_T.tolist() == [3, 4, 5, 0, 0, 0]
    assert batch.kv_places_T.tolist() == [4 * 4 + 3, 2 * 4, 2 * 4 + 1, 1 * 4, 9 * 4, 9 * 4]
    assert batch.query_starts.tolist() == [0, 3, 4]
    assert batch.context_lens_R.tolist() == [6, 1]
    assert batch.block_tables_RB.tolist() == [[4, 2], [1, 9]]
    assert batch.logit_rows_N.tolist() == [1, 2, 3]
    assert (batch.max_query_len, batch.max_context_len) == (3, 6)
    assert batch.slots_R is batch.is_long_rope_T is batch.encoder_lens_R is None


def test_what_rows_say_of_themselves_becomes_tensors() -> None:
    long = SyntheticRow(ids_n=torch.tensor([5, 6]), blocks=[0], slot=3, is_long_rope=True, num_encoder=1)
    short = SyntheticRow(ids_n=torch.tensor([7]), blocks=[1], slot=0, is_long_rope=False, num_encoder=0)
    batch = synthetic_batch([long, short], block_size=4, num_padding=1)
    assert batch.slots_R is not None
    assert batch.is_long_rope_T is not None
    assert batch.encoder_lens_R is not None
    assert batch.slots_R.tolist() == [3, 0]
    assert batch.is_long_rope_T.tolist() == [True, True, False, False]
    assert batch.encoder_lens_R.tolist() == [1, 0]


def test_dtypes_are_those_that_the_native_kernels_read() -> None:
    batch = synthetic_batch([SyntheticRow(ids_n=torch.tensor([5]), blocks=[0], num_logits=0)], block_size=4)
    of_64_bits = (batch.input_ids_T, batch.position_ids_T, batch.kv_places_T, batch.logit_rows_N)
    assert {tensor.dtype for tensor in of_64_bits} == {torch.int64}
    of_32_bits = (batch.query_starts, batch.context_lens_R, batch.block_tables_RB)
    assert {tensor.dtype for tensor in of_32_bits} == {torch.int32}
    assert batch.logit_rows_N.shape == (0,)


def test_rotary_positions_and_spans_may_lie_on_the_gpu_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    with valued_gpu(monkeypatch):
        device = torch.device("cuda")
        image = SyntheticRow(
            ids_n=torch.tensor([5, 6], device=device),
            blocks=[0],
            rope_positions_3n=torch.tensor([[0, 1], [0, 2], [0, 3]], device=device),
            span_ends_n=torch.tensor([2, 2], dtype=torch.int32, device=device),
        )
        text = SyntheticRow(ids_n=torch.tensor([7], device=device), blocks=[1], start=2)
        batch = synthetic_batch([image, text], block_size=4, num_padding=1, device=device)
        assert batch.rope_positions_3T is not None
        assert batch.span_ends_T is not None
        assert batch.rope_positions_3T.device == batch.span_ends_T.device == batch.input_ids_T.device
        assert batch.rope_positions_3T.tolist() == [[0, 1, 2, 0], [0, 2, 2, 0], [0, 3, 2, 0]]
        assert batch.span_ends_T.tolist() == [2, 2, 0, 0]


def test_a_field_of_some_rows_only_is_a_mistake() -> None:
    rows = [SyntheticRow(ids_n=torch.tensor([5]), blocks=[0], slot=slot) for slot in (0, None)]
    with pytest.raises(AssertionError, match="in all rows or in none"):
        synthetic_batch(rows, block_size=4)
