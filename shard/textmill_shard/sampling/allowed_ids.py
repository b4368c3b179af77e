"""Allowed ids: a request names the only token ids that its output may have."""

import torch
from torch import Tensor

from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.sampling.slot_lists import SlotLists
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import NO_IDS, IdArray
from textmill_shard.slots.sampling_params import SamplingParams


class AllowedIds:
    """Makes all other ids impossible, the end ids too unless the request names them."""

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        self._ids = SlotLists(num_slots=num_slots, dtype=torch.int64, device=device)

    def wants(self, params: SamplingParams) -> bool:
        return bool(params.allowed_ids)

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        # The filling repeats an id, whose score is written more than once with one value.
        self._ids.write(slot, params.allowed_ids, filling=params.allowed_ids[0])

    def apply(self, scores_NV: Tensor, rows: StageRows) -> None:
        rows_G1, ids_GE = rows.rows_G.unsqueeze(-1), self._ids.of(rows)
        allowed_GE = scores_NV[rows_G1, ids_GE]
        scores_NV[rows.rows_G] = -torch.inf
        scores_NV[rows_G1, ids_GE] = allowed_GE

    def append(self, rows: StageRows, tokens_G: Tensor) -> IdArray:
        return NO_IDS
