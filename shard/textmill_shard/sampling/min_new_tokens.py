"""Before `min_new_tokens` output tokens exist, the ids that would end the request are impossible."""

import numpy as np
import torch
from torch import Tensor

from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.sampling.slot_lists import SlotLists
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import IdArray
from textmill_shard.slots.sampling_params import SamplingParams


class MinNewTokens:
    """Makes the end ids impossible, except for requests with a grammar, whose mask does so (`grammar/slots.py`)."""

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        self._end_ids = SlotLists(num_slots=num_slots, dtype=torch.int64, device=device)
        self._num_missing_S = torch.zeros(num_slots, dtype=torch.int64, device=device)  # tokens
        self._num_missing_on_host_S = np.zeros(num_slots, dtype=np.int64)

    def wants(self, params: SamplingParams) -> bool:
        return params.min_new_tokens > 0 and bool(params.end_ids) and not params.has_grammar

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        self._end_ids.write(slot, params.end_ids, filling=params.end_ids[0])
        num_missing = params.min_new_tokens - len(tokens.output_ids)
        self._num_missing_S[slot] = num_missing
        self._num_missing_on_host_S[slot] = num_missing

    def apply(self, scores_NV: Tensor, rows: StageRows) -> None:
        # A request that is admitted again with enough tokens leaves the stage with its next token only. Until then, its
        # number of missing tokens is 0 or less, and the stage leaves its scores as they are.
        is_early_G1 = self._num_missing_S[rows.slots_G].unsqueeze(-1) > 0
        rows_G1, ids_GE = rows.rows_G.unsqueeze(-1), self._end_ids.of(rows)
        scores_NV[rows_G1, ids_GE] = scores_NV[rows_G1, ids_GE].masked_fill_(is_early_G1, -torch.inf)

    def append(self, rows: StageRows, tokens_G: Tensor) -> IdArray:
        slots_G = rows.on_host.slots_G
        self._num_missing_S[rows.slots_G] -= 1
        self._num_missing_on_host_S[slots_G] -= 1
        return slots_G[self._num_missing_on_host_S[slots_G] <= 0]
