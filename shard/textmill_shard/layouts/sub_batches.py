"""Cuts the flat batch of a step, for models that must see one text, or one token of each text, at a time."""

# T tokens of the step, R sequences, B sequences of a sub-batch, n tokens of each, N rows whose logits are wanted

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from textmill_shard.model.forward_batch import ForwardBatch


@dataclass(frozen=True, slots=True)
class SubBatch:
    """Sequences with equally many tokens: all that decode, or one chunk of a prompt."""

    batch: ForwardBatch  # of these sequences alone
    num_sequences: int
    tokens: torch.Tensor  # [B * n] int64, where they stand in the flat batch
    logit_rows: tuple[int, ...]  # which of the N rows of the step this sub-batch gives
    is_fresh_B: torch.Tensor  # bool: nothing of the sequence was computed before


def cut_into_sub_batches(batch: ForwardBatch) -> list[SubBatch]:
    """Single tokens together first, then each chunk alone. What begins with an encoder's text is a chunk always."""
    # These reads wait for the device on a GPU: such models are driven from the host.
    starts = batch.query_starts.tolist()
    wanted = batch.logit_rows_N.tolist()
    lengths = [stop - start for start, stop in pairwise(starts)]
    is_fresh = [False] * len(lengths)
    if batch.encoder_lens_R is not None:
        is_fresh = [context == length for context, length in zip(batch.context_lens_R.tolist(), lengths, strict=True)]
    singles = [row for row, length in enumerate(lengths) if length == 1 and not is_fresh[row]]
    chunks = [row for row, length in enumerate(lengths) if length > 1 or (length == 1 and is_fresh[row])]
    groups = ([singles] if singles else []) + [[row] for row in chunks]
    return [_cut(batch, rows, starts, wanted) for rows in groups]


def _cut(batch: ForwardBatch, rows: Sequence[int], starts: Sequence[int], wanted: Sequence[int]) -> SubBatch:
    device = batch.input_ids_T.device
    lengths = [starts[row + 1] - starts[row] for row in rows]
    places = [token for row in rows for token in range(starts[row], starts[row + 1])]
    local = {token: index for index, token in enumerate(places)}
    logit_rows = tuple(index for index, token in enumerate(wanted) if token in local)
    tokens = torch.tensor(places, device=device)
    rows_B = torch.tensor(rows, device=device)
    query_starts = torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0).int()
    context_lens_B = batch.context_lens_R[rows_B]
    is_long_T = batch.is_long_rope_T
    return SubBatch(
        batch=ForwardBatch(
            input_ids_T=batch.input_ids_T[tokens],
            position_ids_T=batch.position_ids_T[tokens],
            kv_places_T=batch.kv_places_T[tokens],
            query_starts=query_starts,
            context_lens_R=context_lens_B,
            block_tables_RB=batch.block_tables_RB[rows_B],
            logit_rows_N=torch.tensor([local[wanted[row]] for row in logit_rows], dtype=torch.int64, device=device),
            max_query_len=max(lengths),
            max_context_len=batch.max_context_len,
            is_long_rope_T=None if is_long_T is None else is_long_T[tokens],
            slots_R=None if batch.slots_R is None else batch.slots_R[rows_B],
            encoder_lens_R=None if batch.encoder_lens_R is None else batch.encoder_lens_R[rows_B],
        ),
        num_sequences=len(rows),
        tokens=tokens,
        logit_rows=logit_rows,
        is_fresh_B=context_lens_B == query_starts.diff(),
    )
