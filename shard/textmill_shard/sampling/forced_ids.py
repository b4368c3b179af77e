"""Forced ids: the only ids that the first output token may be, or the last one that `max_new_tokens` allows.

Checkpoints of encoder-decoders name the language of the answer and the end of a text that has become too long in this
way (`forced_bos_token_id`, `forced_eos_token_id` of generation_config.json).

S slots, G rows.
"""

import numpy as np
import torch
from torch import Tensor

from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import NO_IDS, IdArray
from textmill_shard.slots.sampling_params import SamplingParams


def force(scores_V: Tensor, ids: tuple[int, ...]) -> None:
    """Make every id impossible but these, which get equal scores. `scores_V` changes in place."""
    scores_V.fill_(-torch.inf)
    for token_id in ids:
        scores_V[token_id] = 0.0


class ForcedIds:
    """Leaves one row nothing but its forced ids, at the two ends of an output. All its state is on the host."""

    def __init__(self, *, num_slots: int) -> None:
        self._num_outputs_S = np.zeros(num_slots, dtype=np.int64)  # tokens
        self._params: list[SamplingParams | None] = [None] * num_slots

    def wants(self, params: SamplingParams) -> bool:
        return bool(params.forced_first_ids or params.forced_last_ids)

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        self._num_outputs_S[slot] = len(tokens.output_ids)
        self._params[slot] = params

    def apply(self, scores_NV: Tensor, rows: StageRows) -> None:
        for row, slot in zip(rows.on_host.rows_G.tolist(), rows.on_host.slots_G.tolist(), strict=True):
            params, num_outputs = self._params[slot], int(self._num_outputs_S[slot])
            assert params is not None, slot
            for ids, place in ((params.forced_first_ids, 0), (params.forced_last_ids, params.max_new_tokens - 1)):
                if ids and num_outputs == place:
                    force(scores_NV[row], ids)

    def append(self, rows: StageRows, tokens_G: Tensor) -> IdArray:
        self._num_outputs_S[rows.on_host.slots_G] += 1
        return NO_IDS
