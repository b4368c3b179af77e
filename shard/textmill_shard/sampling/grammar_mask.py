"""The ids that a request's grammar does not let follow become impossible.

The mask that a matcher makes heeds `min_new_tokens` too, so `MinNewTokens` leaves requests with a grammar alone.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from textmill_shard.model.device_copy import to_device
from textmill_shard.model.score_changes import MaskChange
from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import NO_IDS, IdArray
from textmill_shard.slots.sampling_params import SamplingParams


class GrammarMask:
    """Applies one mask to each row. Each draw has its own mask, which threads make beside the forward pass (rule 25).

    The caller must call `set_allowed` for the slot of each row before the row is sampled. A slot whose matcher failed
    keeps the mask of its last draw.
    """

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        self._num_slots = num_slots
        self._device = device
        self._forbidden_SV: Tensor | None = None  # bool; None until the first mask

    def wants(self, params: SamplingParams) -> bool:
        return params.has_grammar

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        if self._forbidden_SV is not None:
            self._forbidden_SV[slot] = False

    def set_allowed(self, slot: int, allowed_V: npt.NDArray[np.bool_]) -> None:
        """Set the ids that may follow in the next draw of a slot: `allowed_V` is True for each such id.

        Copies the mask to the device at every step, because the mask does not exist when the step is built.
        """
        if self._forbidden_SV is None:
            shape = (self._num_slots, len(allowed_V))
            self._forbidden_SV = torch.zeros(shape, dtype=torch.bool, device=self._device)
        allowed = to_device(allowed_V, dtype=torch.bool, device=self._device)
        torch.logical_not(allowed, out=self._forbidden_SV[slot])

    def apply(self, scores_NV: Tensor, rows: StageRows) -> None:
        if self._forbidden_SV is None:
            return
        forbidden_GV = self._forbidden_SV[rows.slots_G]
        if rows.on_host.is_all:
            scores_NV.masked_fill_(forbidden_GV, -torch.inf)
        else:
            scores_NV[rows.rows_G] = scores_NV[rows.rows_G].masked_fill_(forbidden_GV, -torch.inf)

    def change(self, slots_N: Tensor) -> MaskChange | None:
        """Return the change of `apply` for a first pass; `slots_N` (int64) has -1 for rows that do not ask."""
        return None if self._forbidden_SV is None else MaskChange(slots_N, self._forbidden_SV)

    def append(self, rows: StageRows, tokens_G: Tensor) -> IdArray:
        return NO_IDS
