"""The states that layers carry from token to token: one row per slot and layer, a scratch row, and rows of searches."""

# S slots, n rows

from collections.abc import Sequence

import torch

from textmill_shard.probing.state_probe import StateSpec


class StateRows:
    """The rows of all slots, `[S + 1, ...]` per state. Row S is scratch. Further rows are made at their first use."""

    def __init__(self, specs: Sequence[StateSpec], *, num_slots: int, device: torch.device) -> None:
        self.scratch_row = num_slots
        self._conv: dict[tuple[int, int], torch.Tensor] = {}
        self._recurrent: dict[tuple[int, int], torch.Tensor] = {}
        for spec in specs:
            at = (spec.layer, spec.index)
            self._conv[at] = torch.zeros(num_slots + 1, *spec.conv_shape, dtype=spec.conv_dtype, device=device)
            if spec.recurrent_shape is not None:
                self._recurrent[at] = torch.zeros(
                    num_slots + 1, *spec.recurrent_shape, dtype=spec.recurrent_dtype, device=device
                )

    @property
    def num_bytes(self) -> int:
        return sum(rows.nbytes for rows in (*self._conv.values(), *self._recurrent.values()))

    @property
    def num_rows(self) -> int:
        return len(next(iter(self._conv.values())))

    def copy(self, sources_n: torch.Tensor, targets_n: torch.Tensor, *, num_rows: int) -> None:
        """Write rows into other rows, of which there are `num_rows` at least from now on. Sources are read before.

        Raises the device's error where there is no memory for more rows.
        """
        if num_rows > self.num_rows:
            for states in (self._conv, self._recurrent):
                for at, rows in states.items():
                    more = rows.new_zeros(num_rows - len(rows), *rows.shape[1:])
                    states[at] = torch.cat([rows, more])
        for rows in (*self._conv.values(), *self._recurrent.values()):
            rows.index_copy_(0, targets_n, rows.index_select(0, sources_n))

    def clear(self, slots: torch.Tensor) -> None:
        """Set the rows of slots in which a text begins to zero."""
        for rows in (*self._conv.values(), *self._recurrent.values()):
            rows.index_fill_(0, slots, 0)

    def conv(self, layer: int, index: int) -> torch.Tensor:
        return self._conv[layer, index]

    def recurrent(self, layer: int, index: int) -> torch.Tensor | None:
        return self._recurrent.get((layer, index))
