"""Repetition penalty: the ids of prompt and output become less likely, or more likely with a penalty below 1.

The formula is that of N. Keskar et al., "CTRL" (2019), with the change that implementations share: a negative score is
multiplied by the penalty and not divided.
"""

import numpy as np
import torch
from torch import Tensor

from textmill_shard.model.score_changes import RepetitionChange
from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.sampling.stage import SlotText
from textmill_shard.sampling.token_set import TokenSet
from textmill_shard.slots.plan import NO_IDS, IdArray
from textmill_shard.slots.sampling_params import SamplingParams


class RepetitionPenalty:
    """Divides positive scores by the penalty, and multiplies negative scores by the penalty."""

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        self._seen = TokenSet(num_slots=num_slots, device=device)
        self._penalties_S = torch.ones(num_slots, dtype=torch.float32, device=device)

    def wants(self, params: SamplingParams) -> bool:
        return params.repetition_penalty != 1.0

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        self._seen.admit(slot, np.unique(np.concatenate([tokens.prompt_ids, tokens.output_ids])))
        self._penalties_S[slot] = params.repetition_penalty

    def apply(self, scores_NV: Tensor, rows: StageRows) -> None:
        # The filling behind the end of a list repeats an id, which is written more than once with one value.
        rows_G1, ids_GE = rows.rows_G.unsqueeze(-1), self._seen.ids(rows)
        penalties_G1 = self._penalties_S[rows.slots_G].unsqueeze(-1)
        scores_GE = scores_NV[rows_G1, ids_GE]
        scores_NV[rows_G1, ids_GE] = torch.where(scores_GE < 0, scores_GE * penalties_G1, scores_GE / penalties_G1)

    def change(self, slots_N: Tensor) -> RepetitionChange:
        """Return the change of `apply` for a first pass; `slots_N` (int64) has -1 for rows that do not ask."""
        return RepetitionChange(slots_N, self._seen.lists(), self._penalties_S)

    def append(self, rows: StageRows, tokens_G: Tensor) -> IdArray:
        self._seen.append(rows, tokens_G)
        return NO_IDS
