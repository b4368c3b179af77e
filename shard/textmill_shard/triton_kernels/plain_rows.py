"""The plain torch that the kernel `unpack_rows` must agree with."""

import torch

from textmill_shard.model.decode_rows import FED, FIELDS, HEADER
from textmill_shard.model.forward_batch import ForwardBatch


def unpack_rows_plainly(
    packed: torch.Tensor, last_ids_S: torch.Tensor, batch: ForwardBatch, *, scratch_block: int, block_size: int
) -> None:
    """Write the step of a packed form to the tensors of a batch, with padding behind. Reads numbers on the host."""
    num_rows, width = packed[:2].tolist()
    behind = HEADER + len(FIELDS) * num_rows
    fields = packed[HEADER:behind].view(len(FIELDS), num_rows).long()
    slots, starts, tokens, adapters, is_long, rope_deltas = fields
    tables = packed[behind : behind + num_rows * width].view(num_rows, width)
    blocks = tables.gather(1, (starts // block_size).unsqueeze(1)).squeeze(1).long()
    assert batch.slots_R is not None
    _write(batch.slots_R, slots, 0)
    _write(batch.input_ids_T, torch.where(tokens == FED, last_ids_S[slots], tokens), 0)
    _write(batch.position_ids_T, starts, 0)
    _write(batch.kv_places_T, blocks * block_size + starts % block_size, scratch_block * block_size)
    _write(batch.context_lens_R, starts + 1, 1)
    for row, start in enumerate(starts.tolist()):
        num_blocks = start // block_size + 1  # columns behind these are never read
        batch.block_tables_RB[row, :num_blocks] = tables[row, :num_blocks]
    batch.block_tables_RB[num_rows:, :1] = scratch_block
    if batch.adapters_R is not None:
        _write(batch.adapters_R, adapters, 0)
    if batch.is_long_rope_T is not None:
        _write(batch.is_long_rope_T, is_long, 0)
    if batch.rope_positions_3T is not None:
        for positions_T in batch.rope_positions_3T:
            _write(positions_T, starts + rope_deltas, 0)


def _write(tensor: torch.Tensor, values: torch.Tensor, padding: int) -> None:
    tensor[: len(values)] = values
    tensor[len(values) :] = padding
