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
    # This read waits for the device on a GPU: such models are driven from the host.
    starts = batch.query_starts.tolist()
    lengths = [stop - start for start, stop in pairwise(starts)]
    is_fresh = [False] * len(lengths)
    if batch.encoder_lens_R is not None:
        is_fresh = [context == length for context, length in zip(batch.context_lens_R.tolist(), lengths, strict=True)]
    singles = [row for row, length in enumerate(lengths) if length == 1 and not is_fresh[row]]
    chunks = [row for row, length in enumerate(lengths) if length > 1 or (length == 1 and is_fresh[row])]
    groups = ([singles] if singles else []) + [[row] for row in chunks]
    return [_cut(batch, rows) for rows in groups]


def _cut(batch: ForwardBatch, rows: Sequence[int]) -> SubBatch:
    selected = batch.select(rows)
    return SubBatch(
        batch=selected.batch,
        num_sequences=len(rows),
        tokens=selected.tokens,
        logit_rows=selected.logit_rows,
        is_fresh_B=selected.batch.context_lens_R == selected.batch.query_starts.diff(),
    )
