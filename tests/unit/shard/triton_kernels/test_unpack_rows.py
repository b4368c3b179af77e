"""The kernel that begins a graph makes of packed numbers what the batch of the same sequences holds, and padding.

The kernel runs in Triton's interpreter, beside the plain torch of the kernel.
"""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from textmill_shard.model.decode_rows import DecodeRows
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.triton_kernels.cases import UnpackCase
from textmill_shard.triton_kernels.constants import COPIED_BLOCKS
from textmill_shard.triton_kernels.interface import DeviceKernels
from textmill_shard.triton_kernels.variants import VARIANTS, Variant

from tests.fakes.kernel_cases import interpreted_kernels
from tests.fakes.plain_kernels import PlainKernels

BLOCK_SIZE = 16
SCRATCH_BLOCK = 5000
NUM_ROWS = 6  # of the graph
# Positions: the first, both sides of a border of blocks, and one whose table is copied in two parts.
STARTS = (0, BLOCK_SIZE - 1, BLOCK_SIZE, COPIED_BLOCKS * BLOCK_SIZE + 5)
SLOTS = (3, 0, 5, 1)
TOKENS = (11, 12, 13, 14)
ADAPTERS = (0, 2, 1, 0)
IS_LONG = (False, True, True, False)
DELTAS = (0, -3, 0, 4)
WIDTH = COPIED_BLOCKS + 1
TABLES = np.arange(len(STARTS) * WIDTH, dtype=np.int32).reshape(len(STARTS), WIDTH) * 3 % SCRATCH_BLOCK
UNPACKS = [variant for variant in VARIANTS if isinstance(variant.case, UnpackCase)]


def rows_of(*, is_fed: bool = False) -> DecodeRows:
    return DecodeRows(
        slots_R=np.array(SLOTS),
        starts_R=np.array(STARTS),
        tokens_R=None if is_fed else np.array(TOKENS),
        block_tables_RB=TABLES,
        adapters_R=np.array(ADAPTERS),
        is_long_rope_R=np.array(IS_LONG),
        rope_deltas_R=np.array(DELTAS),
    )


def memory_for(case: UnpackCase) -> ForwardBatch:
    """Return tensors for `NUM_ROWS` rows, which hold numbers of a step before."""

    def old(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.full(shape, 1 if dtype is torch.bool else 77, dtype=dtype)

    return ForwardBatch(
        input_ids_T=old(NUM_ROWS),
        position_ids_T=old(NUM_ROWS),
        kv_places_T=old(NUM_ROWS),
        query_starts=torch.arange(NUM_ROWS + 1, dtype=torch.int32),
        context_lens_R=old(NUM_ROWS, dtype=torch.int32),
        block_tables_RB=old(NUM_ROWS, 2 * WIDTH, dtype=torch.int32),
        logit_rows_N=torch.arange(NUM_ROWS),
        max_query_len=1,
        max_context_len=2 * WIDTH * BLOCK_SIZE,
        slots_R=old(NUM_ROWS),
        adapters_R=old(NUM_ROWS, dtype=torch.int32) if case.has_adapters else None,
        is_long_rope_T=old(NUM_ROWS, dtype=torch.bool) if case.has_two_rope_tables else None,
        rope_positions_3T=old(3, 2 * NUM_ROWS)[:, :NUM_ROWS] if case.has_rope_positions else None,
    )


def expected_for(case: UnpackCase) -> ForwardBatch:
    """Return the batch of the sequences, and one token in the scratch block for each row of padding."""
    rows = [
        SyntheticRow(
            ids_n=torch.tensor([token]),
            blocks=table.tolist(),
            start=start,
            slot=slot,
            is_long_rope=is_long if case.has_two_rope_tables else None,
            adapter=adapter if case.has_adapters else None,
            rope_positions_3n=torch.full((3, 1), start + delta) if case.has_rope_positions else None,
        )
        for token, table, start, slot, is_long, adapter, delta in zip(
            TOKENS, TABLES, STARTS, SLOTS, IS_LONG, ADAPTERS, DELTAS, strict=True
        )
    ]
    padding = SyntheticRow(
        ids_n=torch.tensor([0]),
        blocks=[SCRATCH_BLOCK],
        slot=0,
        is_long_rope=False if case.has_two_rope_tables else None,
        adapter=0 if case.has_adapters else None,
    )
    rows += [padding] * (NUM_ROWS - len(rows))
    return synthetic_batch(rows, block_size=BLOCK_SIZE, scratch_block=SCRATCH_BLOCK)


@pytest.mark.parametrize("kernels", [interpreted_kernels(), PlainKernels()], ids=["interpreter", "plain torch"])
@pytest.mark.parametrize("variant", UNPACKS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("is_fed", [False, True], ids=["ids given", "ids of the slots"])
def test_packed_numbers_become_the_batch_of_the_sequences(
    variant: Variant, kernels: DeviceKernels, is_fed: bool
) -> None:
    case = variant.case
    assert isinstance(case, UnpackCase)
    last_ids_S = torch.full((8,), -9)
    if is_fed:
        last_ids_S[list(SLOTS)] = torch.tensor(TOKENS)
    found, expected = memory_for(case), expected_for(case)
    packed = torch.from_numpy(rows_of(is_fed=is_fed).pack())
    kernels.unpack_rows(packed, last_ids_S, found, scratch_block=SCRATCH_BLOCK, block_size=BLOCK_SIZE)
    tables_RB = found.block_tables_RB
    for row, start in enumerate((*STARTS, 0, 0)):  # what lies behind the blocks of a context is left alone
        num_blocks = start // BLOCK_SIZE + 1
        assert torch.equal(tables_RB[row, :num_blocks], expected.block_tables_RB[row, :num_blocks])
        assert (tables_RB[row, num_blocks:] == 77).all()
    for field in fields(ForwardBatch):
        mine, other = getattr(found, field.name), getattr(expected, field.name)
        if torch.is_tensor(mine) and field.name != "block_tables_RB":
            assert mine.dtype == other.dtype, field.name
            assert torch.equal(mine, other), field.name


def test_rows_of_a_longer_step_become_padding() -> None:
    """The memory of a graph has never more rows of a step than the last packed form says."""
    case = UnpackCase()
    kernels, memory = interpreted_kernels(), memory_for(case)
    last_ids_S = torch.zeros(8, dtype=torch.int64)
    one = replace(
        rows_of(),
        slots_R=np.array([2]),
        starts_R=np.array([3]),
        tokens_R=np.array([9]),
        block_tables_RB=np.array([[7]], dtype=np.int32),
        adapters_R=None,
        is_long_rope_R=None,
        rope_deltas_R=None,
    )
    for rows in (rows_of(), one):
        packed = torch.from_numpy(rows.pack())
        kernels.unpack_rows(packed, last_ids_S, memory, scratch_block=SCRATCH_BLOCK, block_size=BLOCK_SIZE)
    assert memory.kv_places_T.tolist() == [7 * BLOCK_SIZE + 3, *[SCRATCH_BLOCK * BLOCK_SIZE] * (NUM_ROWS - 1)]
    assert memory.context_lens_R.tolist() == [4, *[1] * (NUM_ROWS - 1)]
    assert memory.block_tables_RB[:, 0].tolist() == [7, *[SCRATCH_BLOCK] * (NUM_ROWS - 1)]
