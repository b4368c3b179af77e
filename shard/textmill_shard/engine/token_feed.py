"""Keeps the id that each slot sampled last on the device, from where the next step takes the id (overlap).

The host need not know the ids of a step to launch the next step.
"""

# T tokens of the step, N rows that sample, S slots

import numpy as np
import torch

from textmill_shard.engine.upload import Upload
from textmill_shard.slots.plan import IdArray
from textmill_shard.slots.slot_table import SlotTable
from textmill_shard.slots.step_composer import ComposedStep


class TokenFeed:
    """The ids of all slots, on every rank.

    Each step calls `stage` and `take`, or `stage_graph`, and when it samples `put` once.
    """

    def __init__(self, *, num_slots: int, device: torch.device, last_ids_S: torch.Tensor | None = None) -> None:
        """`last_ids_S` is memory that others read too (`DecodeGraphs`), of which the feed is the only writer."""
        self.last_ids_S = torch.zeros(num_slots, dtype=torch.int64, device=device) if last_ids_S is None else last_ids_S
        self._upload: Upload | None = None
        self._number = 0  # of the slots that sample, in the upload of the step
        self._slots_N: torch.Tensor | None = None  # these slots, where they are on the device already
        self._num_decodes = 0

    def stage_graph(self, slots_R: torch.Tensor) -> None:
        """Let `put` take the slots (int64, on the device) of a step of decodes, whose graph reads `last_ids_S`."""
        self._slots_N = slots_R

    def stage(self, table: SlotTable, step: ComposedStep, upload: Upload) -> None:
        """Let the upload of a step take along what `put` needs. Called before the step counts in the table."""
        self._upload, self._slots_N = upload, None
        self._number = upload.add(step.slots_R[step.samples_R])
        is_decode_R = ~table.is_prefilling[step.slots_R]
        self._num_decodes = len(step.slots_R) if step.is_decode else int(np.count_nonzero(is_decode_R))

    def take(self, input_ids_T: torch.Tensor, slots_R: torch.Tensor) -> torch.Tensor:
        """Return the input ids of the step, in which each decode has the id that its slot sampled last.

        The decodes are the first rows of a step, with one token each. May write to `input_ids_T`.
        """
        if self._num_decodes == len(input_ids_T):
            return self.last_ids_S.index_select(0, slots_R)
        if self._num_decodes:
            first = slice(0, self._num_decodes)
            input_ids_T[first].copy_(self.last_ids_S.index_select(0, slots_R[first]))
        return input_ids_T

    def put(self, tokens_N: torch.Tensor) -> None:
        """Take in the ids (int64, on the device) that the rows of the staged step sampled."""
        slots_N = self._slots_N
        if slots_N is None:
            assert self._upload is not None
            slots_N = self._upload.tensor(self._number)
        self.last_ids_S.index_copy_(0, slots_N, tokens_N)

    def correct(self, slots: IdArray, tokens: IdArray) -> None:
        """Replace the ids of some slots, whose draw had to look at more scores than its step could."""
        upload = Upload(self.last_ids_S.device)
        numbers = upload.add(slots), upload.add(tokens)
        upload.send()
        self.last_ids_S.index_copy_(0, upload.tensor(numbers[0]), upload.tensor(numbers[1]))
