"""A decode step on the host, and its packed form: all numbers of the step as 32-bit integers, one behind the other.

The packed form reaches the device in one copy, and the first kernel of a graph makes of it what the layers read
(`triton_kernels/device/unpack_rows.py`). The form begins with `HEADER` integers: the number of rows, the width of the
block tables, and two that say nothing. Behind them lie the fields, each with one integer per row, in the order of
`FIELDS`, and then the block tables, row by row.
"""

# R rows of one token each, B blocks of the widest table, S slots

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HEADER = 4  # a multiple of 16 bytes
# Slot; position of the token in its sequence; id of the token, or FED; place of the adapter; 1 for the long rotary
# table; rotary position less the position.
FIELDS = ("slots", "starts", "tokens", "adapters", "is_long", "rope_deltas")
FED = -1  # the id is the one that the slot sampled last, which the device has


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """One token for each of R rows. The arrays are parallel."""

    slots_R: npt.NDArray[np.integer]
    starts_R: npt.NDArray[np.integer]  # position of the token
    tokens_R: npt.NDArray[np.integer] | None  # None: the device has the ids that the slots sampled last
    block_tables_RB: npt.NDArray[np.int32]  # reaches as far as the longest context
    adapters_R: npt.NDArray[np.integer] | None = None  # place of the row's adapter, 0 = none; None: no row has one
    is_long_rope_R: npt.NDArray[np.bool_] | None = None  # None: one rotary table
    rope_deltas_R: npt.NDArray[np.integer] | None = None  # None: rotary positions are positions

    @property
    def num_rows(self) -> int:
        return len(self.slots_R)

    @property
    def width(self) -> int:
        """The blocks of the widest table."""
        return int(self.block_tables_RB.shape[1])

    def pack(self) -> npt.NDArray[np.int32]:
        """Return the packed form."""
        num_rows, width = self.num_rows, self.width
        packed = np.empty(packed_length(num_rows, width), dtype=np.int32)
        packed[:HEADER] = num_rows, width, 0, 0
        behind = HEADER + len(FIELDS) * num_rows
        fields = packed[HEADER:behind].reshape(len(FIELDS), num_rows)
        fields[0] = self.slots_R
        fields[1] = self.starts_R
        fields[2] = FED if self.tokens_R is None else self.tokens_R
        fields[3] = 0 if self.adapters_R is None else self.adapters_R
        fields[4] = 0 if self.is_long_rope_R is None else self.is_long_rope_R
        fields[5] = 0 if self.rope_deltas_R is None else self.rope_deltas_R
        packed[behind:].reshape(num_rows, width)[...] = self.block_tables_RB
        return packed


def packed_length(num_rows: int, width: int) -> int:
    """Return the integers of the packed form."""
    return HEADER + num_rows * (len(FIELDS) + width)
