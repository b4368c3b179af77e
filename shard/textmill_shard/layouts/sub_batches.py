"""Cuts the flat batch of a step, for models that read one text, or one token of each text, at a time."""

# T tokens of the step, R sequences, B sequences of a sub-batch, n tokens of each, N rows whose logits are wanted

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from textmill_shard.model.forward_batch import ForwardBatch


@dataclass(frozen=True, slots=True)
class SubBatch:
    """Sequences with equally many tokens: all sequences that decode, or one chunk of a prompt."""

    batch: ForwardBatch  # the batch of these sequences alone
    num_sequences: int
    tokens: torch.Tensor  # [B * n] int64, indices of the tokens in the flat batch
    logit_rows: tuple[int, ...]  # the rows of the step (of N) whose logits this sub-batch computes
    is_fresh_B: torch.Tensor  # bool: whether no token of the sequence was computed before


def cut_into_sub_batches(batch: ForwardBatch) -> list[SubBatch]:
    """Return the sub-batches of a step: first all single tokens together, then each chunk alone.

    A sequence that begins with an encoder's text is always a chunk.
    """
    starts = batch.starts()
    lengths = [stop - start for start, stop in pairwise(starts)]
    is_fresh = [False] * len(lengths)
    if batch.encoder_lens_R is not None:
        is_fresh = [context == length for context, length in zip(batch.context_lens_R.tolist(), lengths, strict=True)]
    singles = [row for row, length in enumerate(lengths) if length == 1 and not is_fresh[row]]
    chunks = [row for row, length in enumerate(lengths) if length > 1 or (length == 1 and is_fresh[row])]
    if not chunks and len(singles) == batch.input_ids_T.shape[0]:
        return [_whole(batch, len(singles))]
    groups = ([singles] if singles else []) + [[row] for row in chunks]
    return [_cut(batch, rows) for rows in groups]


def _whole(batch: ForwardBatch, num_sequences: int) -> SubBatch:
    """Return a step of single tokens as it is, so that nothing is copied."""
    num_rows = batch.logit_rows_N.shape[0]
    return SubBatch(
        batch=batch,
        num_sequences=num_sequences,
        tokens=torch.arange(num_sequences, device=batch.input_ids_T.device),
        logit_rows=tuple(range(num_rows)),
        is_fresh_B=batch.context_lens_R == 1,
    )


def _cut(batch: ForwardBatch, rows: Sequence[int]) -> SubBatch:
    selected = batch.select(rows)
    return SubBatch(
        batch=selected.batch,
        num_sequences=len(rows),
        tokens=selected.tokens,
        logit_rows=selected.logit_rows,
        is_fresh_B=selected.batch.context_lens_R == selected.batch.query_starts.diff(),
    )
