"""Changes of the scores that come before any choice: penalties, bias, masked ends.

N rows, V vocabulary, E touched entries over all rows. Each function edits `logits_NV` in place at the entries it is
given; an entry (row, id) stands at most once in a call, but for the bias. `process` is the only one the sampler calls.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from textmill_shard.sampling.slot_sampling import SlotSampling
from textmill_shard.sampling.watermark import DEFAULT_KEY, WatermarkKey, is_green


@dataclass(frozen=True, slots=True)
class Entries:
    """Places in the scores: `rows_E` and `ids_E` int64, on the device of the scores."""

    rows_E: Tensor
    ids_E: Tensor


def apply_repetition_penalty(logits_NV: Tensor, entries: Entries, penalties_E: Tensor) -> None:
    """Divide positive scores and multiply negative ones: towards unlikely for a penalty above 1."""
    scores_E = logits_NV[entries.rows_E, entries.ids_E]
    logits_NV[entries.rows_E, entries.ids_E] = torch.where(scores_E < 0, scores_E * penalties_E, scores_E / penalties_E)


def apply_count_penalty(logits_NV: Tensor, entries: Entries, amounts_E: Tensor) -> None:
    """Subtract `presence + frequency * count`, computed by the caller."""
    logits_NV[entries.rows_E, entries.ids_E] -= amounts_E


def apply_bias(logits_NV: Tensor, entries: Entries, biases_E: Tensor) -> None:
    """Add; an id that stands twice in a request's bias gets both."""
    logits_NV.index_put_((entries.rows_E, entries.ids_E), biases_E, accumulate=True)


def apply_mask(logits_NV: Tensor, entries: Entries) -> None:
    """Make these ids impossible."""
    logits_NV[entries.rows_E, entries.ids_E] = -torch.inf


def apply_grammar(logits_NV: Tensor, rows: Sequence[int], allowed: Sequence[NDArray[np.bool_]]) -> None:
    """Make impossible what a row's grammar does not let follow. A grammar's mask knows of `min_new_tokens`."""
    allowed_GV = torch.from_numpy(np.stack(allowed)).to(logits_NV.device)
    logits_NV[rows] = logits_NV[rows].masked_fill(~allowed_GV, -torch.inf)


def apply_watermark(logits_NV: Tensor, rows: Sequence[int], last_tokens_G: Tensor, watermark: WatermarkKey) -> None:
    """Raise the green list of each row."""
    ids_1V = torch.arange(logits_NV.shape[-1], device=logits_NV.device).unsqueeze(0)
    green_GV = is_green(last_tokens_G.unsqueeze(-1), ids_1V, watermark.gamma)
    logits_NV[rows] += green_GV * watermark.delta


def process(logits_NV: Tensor, slots: Sequence[SlotSampling], watermark: WatermarkKey = DEFAULT_KEY) -> Tensor:
    """Scores [N, V] float32 after penalties, bias and masked ends. `logits_NV` itself when no row asks for a change,
    else an edited copy.

    Order: repetition, presence and frequency, bias, masked end ids, grammar, watermark.
    """
    repeated = [(row, slot.params, slot.seen) for row, slot in enumerate(slots) if slot.seen is not None]
    counted = [(row, slot.params, slot.output) for row, slot in enumerate(slots) if slot.output is not None]
    biased = [(row, slot.params) for row, slot in enumerate(slots) if slot.params.logit_bias]
    early = [
        (row, slot.params)
        for row, slot in enumerate(slots)
        if slot.num_output_tokens < slot.params.min_new_tokens and slot.allowed_V is None
    ]
    matched = [(row, slot.allowed_V) for row, slot in enumerate(slots) if slot.allowed_V is not None]
    marked = [(row, slot.last_token) for row, slot in enumerate(slots) if slot.params.watermark]
    if not (repeated or counted or biased or early or matched or marked):
        return logits_NV
    scores_NV = logits_NV.clone()
    device = logits_NV.device
    if repeated:
        entries = _entries([(row, seen.ids_E) for row, _, seen in repeated], device)
        penalties = [np.full(len(seen.ids_E), params.repetition_penalty) for _, params, seen in repeated]
        apply_repetition_penalty(scores_NV, entries, _floats(penalties, device))
    if counted:
        entries = _entries([(row, output.ids_E) for row, _, output in counted], device)
        amounts = [
            params.presence_penalty + params.frequency_penalty * output.counts_E for _, params, output in counted
        ]
        apply_count_penalty(scores_NV, entries, _floats(amounts, device))
    if biased:
        entries = _entries([(row, [token for token, _ in params.logit_bias]) for row, params in biased], device)
        apply_bias(
            scores_NV, entries, _floats([[bias for _, bias in params.logit_bias] for _, params in biased], device)
        )
    if early:
        apply_mask(scores_NV, _entries([(row, params.end_ids) for row, params in early], device))
    if matched:
        apply_grammar(scores_NV, [row for row, _ in matched], [allowed_V for _, allowed_V in matched])
    if marked:
        last_tokens = torch.tensor([token for _, token in marked], device=device)
        apply_watermark(scores_NV, [row for row, _ in marked], last_tokens, watermark)
    return scores_NV


def _entries(ids_of_rows: Sequence[tuple[int, Sequence[int] | NDArray[np.int64]]], device: torch.device) -> Entries:
    """Join the ids of several rows: two int64 [E] tensors on `device`."""
    ids_E = np.concatenate([np.asarray(ids, dtype=np.int64) for _, ids in ids_of_rows])
    rows_E = np.repeat([row for row, _ in ids_of_rows], [len(ids) for _, ids in ids_of_rows])
    return Entries(rows_E=torch.from_numpy(rows_E).to(device), ids_E=torch.from_numpy(ids_E).to(device))


def _floats(values_of_rows: Iterable[ArrayLike], device: torch.device) -> Tensor:
    """Join values of several rows: float32 [E] on `device`."""
    values_E = np.concatenate([np.asarray(values, dtype=np.float32) for values in values_of_rows])
    return torch.from_numpy(values_E).to(device)
