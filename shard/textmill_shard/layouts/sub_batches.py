"""Cuts the flat batch of a step, for models that read one text, or one token of each text, at a time."""

# T tokens of the step, R sequences, B sequences of a sub-batch, n tokens of each

from dataclasses import dataclass
from itertools import pairwise

import torch

from textmill_shard.model.forward_batch import ForwardBatch


@dataclass(frozen=True, slots=True)
class SubBatch:
    """Sequences with equally many tokens: neighbours with one token each, or one chunk of a prompt."""

    batch: ForwardBatch  # the batch of these sequences alone
    num_sequences: int
    is_fresh_B: torch.Tensor  # bool: whether no token of the sequence was computed before


def cut_into_sub_batches(batch: ForwardBatch) -> list[SubBatch]:
    """Return the sub-batches of a step, in the order of the step: all sequences, without the padding.

    The decodes, which stand before the chunks, are one sub-batch. Single tokens that stand between chunks are further
    ones, so that nothing has to be put into another order. A sequence that begins with an encoder's text is a chunk.
    """
    starts = batch.starts()
    lengths = [stop - start for start, stop in pairwise(starts)]
    is_fresh = [False] * len(lengths)
    if batch.encoder_lens_R is not None:
        is_fresh = [context == length for context, length in zip(batch.context_lens_R.tolist(), lengths, strict=True)]
    is_single = [length == 1 and not fresh for length, fresh in zip(lengths, is_fresh, strict=True)]
    borders = [row for row in range(1, len(lengths)) if not (is_single[row] and is_single[row - 1])]
    if not borders and starts[-1] == batch.input_ids_T.shape[0]:
        return [_sub_batch(batch)]  # as it is, so that nothing is copied
    return [_sub_batch(batch.select(first, stop)) for first, stop in pairwise((0, *borders, len(lengths)))]


def _sub_batch(batch: ForwardBatch) -> SubBatch:
    return SubBatch(
        batch=batch,
        num_sequences=len(batch.context_lens_R),
        is_fresh_B=batch.context_lens_R == batch.query_starts.diff(),
    )
