"""Logit bias: a request names token ids, and for each id the amount that is added to its score."""

import torch
from torch import Tensor

from textmill_shard.model.score_changes import BiasChange, IdLists
from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.sampling.slot_lists import SlotLists
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import NO_IDS, IdArray
from textmill_shard.slots.sampling_params import SamplingParams


class Bias:
    """Adds the amounts. An id that stands twice in a request's bias gains both amounts."""

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        self._ids = SlotLists(num_slots=num_slots, dtype=torch.int64, device=device)
        self._amounts = SlotLists(num_slots=num_slots, dtype=torch.float32, device=device)
        self._num_ids_S = torch.zeros(num_slots, dtype=torch.int64, device=device)

    def wants(self, params: SamplingParams) -> bool:
        return bool(params.logit_bias)

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        amounts: dict[int, float] = {}
        for token, amount in params.logit_bias:
            amounts[token] = amounts.get(token, 0.0) + amount
        self._ids.write(slot, list(amounts))
        self._amounts.write(slot, list(amounts.values()))
        self._num_ids_S[slot] = len(amounts)

    def apply(self, scores_NV: Tensor, rows: StageRows) -> None:
        ids_GE = self._ids.of(rows)
        places = (rows.rows_G.unsqueeze(-1).expand_as(ids_GE), ids_GE)
        scores_NV.index_put_(places, self._amounts.of(rows), accumulate=True)

    def change(self, slots_N: Tensor) -> BiasChange:
        """Return the change of `apply` for a first pass; `slots_N` (int64) has -1 for rows that do not ask."""
        return BiasChange(slots_N, IdLists(self._ids.values_SE, self._num_ids_S), self._amounts.values_SE)

    def append(self, rows: StageRows, tokens_G: Tensor) -> IdArray:
        return NO_IDS
