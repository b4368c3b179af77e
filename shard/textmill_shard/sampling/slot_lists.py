"""Keeps a list of numbers for each slot on the device, so that a step reads the lists of its rows in one operation.

S slots, E entries of the longest list, G rows.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from textmill_shard.model.device_copy import to_device
from textmill_shard.sampling.row_selection import StageRows

FIRST_WIDTH = 64


class SlotLists:
    """One list per slot, in the rows of one tensor that grows with the longest list.

    Behind the end of its list, a row of `values_SE` holds the filling of the slot.
    """

    def __init__(self, *, num_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.values_SE = torch.zeros(num_slots, FIRST_WIDTH, dtype=dtype, device=device)
        self.sizes_S = np.zeros(num_slots, dtype=np.int64)  # entries, or a bound above their number
        self._fillings_S = torch.zeros(num_slots, dtype=dtype, device=device)

    def write(self, slot: int, values_E: npt.ArrayLike, *, filling: float = 0) -> None:
        """Replace the list and the filling of a slot. Copies to the device, so only `admit` of a stage may call it."""
        values = to_device(values_E, dtype=self.values_SE.dtype, device=self.values_SE.device)
        self.make_room(len(values))
        self.values_SE[slot, : len(values)] = values
        self.values_SE[slot, len(values) :] = filling
        self._fillings_S[slot] = filling
        self.sizes_S[slot] = len(values)

    def make_room(self, width: int) -> None:
        """Let each list have at least `width` entries."""
        old_width = self.values_SE.shape[1]
        if width > old_width:
            num_more = max(width, 2 * old_width) - old_width
            more_SE = self._fillings_S.unsqueeze(-1).expand(-1, num_more)
            self.values_SE = torch.cat([self.values_SE, more_SE], dim=1)

    def of(self, rows: StageRows) -> Tensor:
        """Return the lists of some rows, [G, E], where E is the length of the longest list among these rows."""
        return self.cut(rows, int(self.sizes_S[rows.on_host.slots_G].max()))

    def cut(self, rows: StageRows, width: int) -> Tensor:
        """Return the first entries of the lists of some rows, [G, width]."""
        return self.values_SE[:, :width][rows.slots_G]
