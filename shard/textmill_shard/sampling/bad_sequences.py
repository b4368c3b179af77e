"""Bad sequences: a request names sequences of token ids, none of which its output may hold.

The last id of a sequence is impossible where the output ends with the ids before the last one, as in vLLM's
`bad_words`. The prompt does not count.

S slots, G rows, W sequences of the request that has the most, L ids before the last one of the longest sequence.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from textmill_shard.model.device_copy import to_device
from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import NO_IDS, IdArray
from textmill_shard.slots.sampling_params import SamplingParams

_ANY = -1  # stands before the first id of a sequence, where any id or none may stand
_NONE = -2  # stands before the first output token
_NEVER = -3  # equals no id of an output; fills the places of sequences that a request does not have


class BadSequences:
    """Makes the last ids impossible. For each slot the stage has the sequences and the last L ids of the output."""

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        self._beginnings_SWL = torch.full((num_slots, 1, 1), _NEVER, dtype=torch.int64, device=device)
        self._ends_SW = torch.zeros(num_slots, 1, dtype=torch.int64, device=device)
        self._recent_SL = torch.full((num_slots, 1), _NONE, dtype=torch.int64, device=device)

    def wants(self, params: SamplingParams) -> bool:
        return bool(params.bad_sequences)

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        sequences = params.bad_sequences
        self._make_room(len(sequences), max(map(len, sequences)) - 1)
        length = self._recent_SL.shape[1]
        beginnings = [_padded(sequence[:-1], length, _ANY) for sequence in sequences]
        self._beginnings_SWL[slot] = _NEVER
        device = self._ends_SW.device
        ends = [sequence[-1] for sequence in sequences]
        recent = _padded(tokens.output_ids.tolist(), length, _NONE)
        shape = (len(sequences), length)  # also where each sequence has one id alone
        self._beginnings_SWL[slot, : len(sequences)] = to_device(
            np.array(beginnings).reshape(shape), dtype=torch.int64, device=device
        )
        self._ends_SW[slot, : len(sequences)] = to_device(ends, dtype=torch.int64, device=device)
        self._recent_SL[slot] = to_device(recent, dtype=torch.int64, device=device)

    def apply(self, scores_NV: Tensor, rows: StageRows) -> None:
        beginnings_GWL, recent_G1L = self._beginnings_SWL[rows.slots_G], self._recent_SL[rows.slots_G].unsqueeze(1)
        is_near_GW = ((beginnings_GWL == recent_G1L) | (beginnings_GWL == _ANY)).all(-1)
        amounts_GW = torch.zeros(is_near_GW.shape, device=scores_NV.device).masked_fill_(is_near_GW, -torch.inf)
        places = (rows.rows_G.unsqueeze(-1).expand_as(amounts_GW), self._ends_SW[rows.slots_G])
        scores_NV.index_put_(places, amounts_GW, accumulate=True)

    def append(self, rows: StageRows, tokens_G: Tensor) -> IdArray:
        self._recent_SL[rows.slots_G] = torch.cat([self._recent_SL[rows.slots_G, 1:], tokens_G.unsqueeze(-1)], dim=1)
        return NO_IDS

    def _make_room(self, num_sequences: int, length: int) -> None:
        """Let each slot have at least so many sequences, with at least so many ids before the last one."""
        more = max(0, num_sequences - self._ends_SW.shape[1])
        longer = max(0, length - self._recent_SL.shape[1])
        pad = torch.nn.functional.pad
        self._recent_SL = pad(self._recent_SL, (longer, 0), value=_NONE)
        self._beginnings_SWL = pad(self._beginnings_SWL, (longer, 0), value=_ANY)
        self._beginnings_SWL = pad(self._beginnings_SWL, (0, 0, 0, more), value=_NEVER)
        self._ends_SW = pad(self._ends_SW, (0, more))


def _padded(ids: Sequence[int], length: int, filling: int) -> list[int]:
    """Return the last `length` ids, behind as many fillings as are missing."""
    last = list(ids)[max(0, len(ids) - length) :]
    return [filling] * (length - len(last)) + last
