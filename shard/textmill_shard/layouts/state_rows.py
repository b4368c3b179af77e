"""The states that layers carry from token to token: one row per slot and layer, and a scratch row."""

# S slots

from collections.abc import Sequence

import torch

from textmill_shard.probing.state_probe import StateSpec


class StateRows:
    """The rows of all slots, `[S + 1, ...]` per state. The last row is scratch."""

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

    def clear(self, slots: torch.Tensor) -> None:
        """Set the rows of slots in which a text begins to zero."""
        for rows in (*self._conv.values(), *self._recurrent.values()):
            rows.index_fill_(0, slots, 0)

    def conv(self, layer: int, index: int) -> torch.Tensor:
        return self._conv[layer, index]

    def recurrent(self, layer: int, index: int) -> torch.Tensor | None:
        return self._recurrent.get((layer, index))
