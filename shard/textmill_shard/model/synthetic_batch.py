"""Builds the flat batch of a step without a slot table, for the checks at load, for tests and for benchmarks."""

# n tokens of one row, T tokens of the step, R rows, m tokens that take a row of an image, D width of the embeddings

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch

from textmill_shard.model.forward_batch import ForwardBatch, MediaStep

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class SyntheticRow:
    """The part of one sequence that a synthetic step computes.

    The fields `slot` to `adapter` are set in all rows of a batch or in none, because None leaves the tensor out of the
    batch. The fields behind them may be set in any row; the places of `media` count from the first token of the row.
    """

    ids_n: torch.Tensor  # int64, the tokens that the step computes
    blocks: Sequence[int]  # the block table, which covers the tokens of the step too
    start: int = 0  # number of tokens of the sequence that stand in the pool already
    num_logits: int = 1  # number of last tokens of the row whose logits are wanted
    slot: int | None = None
    is_long_rope: bool | None = None
    num_encoder: int | None = None  # number of first tokens of the sequence that the encoder reads
    adapter: int | None = None  # place of the sequence's adapter, 0 = none
    media: MediaStep | None = None
    rope_positions_3n: torch.Tensor | None = None  # int64
    span_ends_n: torch.Tensor | None = None  # int32


def synthetic_batch(
    rows: Sequence[SyntheticRow],
    *,
    block_size: int,
    scratch_block: int = 0,
    num_padding: int = 0,
    device: torch.device | None = None,
) -> ForwardBatch:
    """Return a batch of the rows, end to end, and of `num_padding` tokens in the scratch block behind them.

    The scratch block also pads the block tables. Without a device the tensors are on the CPU.
    """
    lens = [len(row.ids_n) for row in rows]
    ends = list(accumulate(lens))
    context_lens = [row.start + length for row, length in zip(rows, lens, strict=True)]
    width = max(len(row.blocks) for row in rows)
    tables = [[*row.blocks, *[scratch_block] * (width - len(row.blocks))] for row in rows]
    positions = [torch.arange(row.start, stop) for row, stop in zip(rows, context_lens, strict=True)]
    places = [
        torch.tensor(table)[position_n // block_size] * block_size + position_n % block_size
        for table, position_n in zip(tables, positions, strict=True)
    ]
    padding = torch.zeros(num_padding, dtype=torch.int64)
    wanted = [token for row, end in zip(rows, ends, strict=True) for token in range(end - row.num_logits, end)]
    slots = _given([row.slot for row in rows])
    is_long = _given([row.is_long_rope for row in rows])
    encoder_lens = _given([row.num_encoder for row in rows])
    adapters = _given([row.adapter for row in rows])
    return ForwardBatch(
        input_ids_T=torch.cat([*(row.ids_n.to(device) for row in rows), padding.to(device)]),
        position_ids_T=torch.cat([*positions, padding]).to(device),
        kv_places_T=torch.cat([*places, padding + scratch_block * block_size]).to(device),
        query_starts=torch.tensor([0, *ends], dtype=torch.int32, device=device),
        context_lens_R=torch.tensor(context_lens, dtype=torch.int32, device=device),
        block_tables_RB=torch.tensor(tables, dtype=torch.int32, device=device),
        logit_rows_N=torch.tensor(wanted, dtype=torch.int64, device=device),
        max_query_len=max(lens),
        max_context_len=max(context_lens),
        slots_R=None if slots is None else torch.tensor(slots, dtype=torch.int64, device=device),
        is_long_rope_T=None if is_long is None else _by_token(is_long, lens, num_padding).to(device),
        adapters_R=None if adapters is None else torch.tensor(adapters, dtype=torch.int32, device=device),
        adapters_on_host=() if adapters is None else tuple(adapters),
        encoder_lens_R=None if encoder_lens is None else torch.tensor(encoder_lens, dtype=torch.int64, device=device),
        media=_media(rows, starts=[0, *ends]),
        rope_positions_3T=_rope_positions(rows, positions, num_padding, device),
        span_ends_T=_span_ends(rows, lens, num_padding, device),
    )


def _media(rows: Sequence[SyntheticRow], *, starts: Sequence[int]) -> MediaStep | None:
    given = [(row.media, start) for row, start in zip(rows, starts, strict=False) if row.media is not None]
    if not given:
        return None
    deepstack = [media.deepstack_kmD for media, _ in given if media.deepstack_kmD is not None]
    return MediaStep(
        places_m=torch.cat([media.places_m + start for media, start in given]),
        rows_mD=torch.cat([media.rows_mD for media, _ in given]),
        deepstack_kmD=torch.cat(deepstack, dim=1) if deepstack else None,
    )


def _rope_positions(
    rows: Sequence[SyntheticRow], positions: Sequence[torch.Tensor], num_padding: int, device: torch.device | None
) -> torch.Tensor | None:
    """Return `[3, T]`, or None where no row has positions of its own."""
    if all(row.rope_positions_3n is None for row in rows):
        return None
    parts = [
        (position_n.expand(3, -1) if row.rope_positions_3n is None else row.rope_positions_3n).to(device)
        for row, position_n in zip(rows, positions, strict=True)
    ]
    return torch.cat([*parts, torch.zeros(3, num_padding, dtype=torch.int64, device=device)], dim=1)


def _span_ends(
    rows: Sequence[SyntheticRow], lens: Sequence[int], num_padding: int, device: torch.device | None
) -> torch.Tensor | None:
    """Return int32 `[T]`, or None where no row has a span."""
    if all(row.span_ends_n is None for row in rows):
        return None
    parts = [
        torch.zeros(length, dtype=torch.int32, device=device) if row.span_ends_n is None else row.span_ends_n.to(device)
        for row, length in zip(rows, lens, strict=True)
    ]
    return torch.cat([*parts, torch.zeros(num_padding, dtype=torch.int32, device=device)])


def _given(values: Sequence[_Value | None]) -> list[_Value] | None:
    given = [value for value in values if value is not None]
    assert len(given) in (0, len(values)), "a field is given in all rows or in none"
    return given or None


def _by_token(values_R: Sequence[bool], lens: Sequence[int], num_padding: int) -> torch.Tensor:
    """Return bool `[T]`: the value of each token's row, and False for padding."""
    return torch.tensor([*values_R, False]).repeat_interleave(torch.tensor([*lens, num_padding]))
