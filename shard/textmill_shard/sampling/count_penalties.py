"""Presence and frequency penalty: an id of the output loses `presence + frequency * occurrences` logits."""

import numpy as np
import torch
from torch import Tensor

from textmill_shard.model.score_changes import CountChange
from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.sampling.slot_lists import SlotLists
from textmill_shard.sampling.stage import SlotText
from textmill_shard.sampling.token_set import TokenSet
from textmill_shard.slots.plan import NO_IDS, IdArray
from textmill_shard.slots.sampling_params import SamplingParams


class CountPenalties:
    """Takes the penalties off. Only the ids of the output count, and the ids of the prompt do not."""

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        self._output = TokenSet(num_slots=num_slots, device=device)
        self._counts = SlotLists(num_slots=num_slots, dtype=torch.float32, device=device)  # parallel to `_output`
        self._presence_S = torch.zeros(num_slots, dtype=torch.float32, device=device)
        self._frequency_S = torch.zeros(num_slots, dtype=torch.float32, device=device)

    def wants(self, params: SamplingParams) -> bool:
        return params.presence_penalty != 0.0 or params.frequency_penalty != 0.0

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        ids, counts = np.unique(tokens.output_ids, return_counts=True)
        self._output.admit(slot, ids)
        self._counts.write(slot, counts)
        self._presence_S[slot] = params.presence_penalty
        self._frequency_S[slot] = params.frequency_penalty

    def apply(self, scores_NV: Tensor, rows: StageRows) -> None:
        width = self._output.width(rows)
        ids_GE, counts_GE = self._output.ids(rows).clamp_(min=0), self._counts.cut(rows, width)
        presence_G1 = self._presence_S[rows.slots_G].unsqueeze(-1)
        frequency_G1 = self._frequency_S[rows.slots_G].unsqueeze(-1)
        amounts_GE = (presence_G1 + frequency_G1 * counts_GE) * (counts_GE > 0)
        # The amounts are added and not written, because the filling behind the end of a list names an id that may
        # stand in the list too, with an amount of 0.
        places = (rows.rows_G.unsqueeze(-1).expand_as(ids_GE), ids_GE)
        scores_NV.index_put_(places, -amounts_GE, accumulate=True)

    def change(self, slots_N: Tensor) -> CountChange:
        """Return the change of `apply` for a first pass; `slots_N` (int64) has -1 for rows that do not ask."""
        return CountChange(slots_N, self._output.lists(), self._counts.values_SE, self._presence_S, self._frequency_S)

    def append(self, rows: StageRows, tokens_G: Tensor) -> IdArray:
        places_G = self._output.append(rows, tokens_G)
        self._counts.make_room(self._output.width(rows))
        self._counts.values_SE[rows.slots_G, places_G] += 1
        return NO_IDS
