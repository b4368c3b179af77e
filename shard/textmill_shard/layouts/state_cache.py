"""Replaces transformers' cache during one sub-batch. Layers read and write the state rows of the sub-batch's slots."""

# B sequences of the sub-batch

from typing import Any

import torch
from transformers import Cache
from transformers import __version__ as transformers_version

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.layouts.state_rows import StateRows

FIRST_WITH_STATES = "5.21"  # since then layers ask their cache for states; before, they read the cache's own lists


def check_states_can_be_asked() -> None:
    """Raises UnsupportedModelError for a release of transformers whose layers do not ask for their states."""
    if not hasattr(Cache, "get_conv_state"):
        raise UnsupportedModelError(
            "layers that carry state from token to token are served with transformers "
            f"{FIRST_WITH_STATES} or newer, and {transformers_version} is installed"
        )


class StateCache(Cache):  # type: ignore[misc]
    """Gathers the states that a layer asks for, lets the layer change them in place, and writes them back in `finish`.

    The attention function puts keys and values into the pool. A new text has rows of zeros, with which a layer would
    also pad the text's first tokens, so that each text counts as one that goes on.
    """

    def __init__(self, rows: StateRows, slots_B: torch.Tensor) -> None:
        super().__init__(layers=[])
        self._rows = rows
        self._slots_B = slots_B
        self._conv: dict[tuple[int, int], torch.Tensor] = {}
        self._recurrent: dict[tuple[int, int], torch.Tensor] = {}
        self.last_recurrent: torch.Tensor | None = None  # the state that the layer under way has got

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        return 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return True

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor:
        at = (layer_idx, state_idx)
        self._conv[at] = self._rows.conv(*at).index_select(0, self._slots_B)
        return self._conv[at]

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        """Return the past and the new inputs `[B, channels, width + n]`, and keep the last `width` of them."""
        at = (layer_idx, state_idx)
        before = self._conv.get(at)
        if before is None:
            before = self.get_conv_state(*at)
        whole = torch.cat([before, conv_states.to(before.dtype)], dim=-1)
        self._conv[at] = whole[..., -before.shape[-1] :]
        return whole

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        at = (layer_idx, state_idx)
        rows = self._rows.recurrent(*at)
        if rows is None:
            return None
        self._recurrent[at] = self.last_recurrent = rows.index_select(0, self._slots_B)
        return self.last_recurrent

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        self._recurrent[layer_idx, state_idx] = recurrent_states
        return recurrent_states

    def convert(self) -> None:
        """Give all states the dtype of their rows."""
        for at, recurrent in self._recurrent.items():
            rows = self._rows.recurrent(*at)
            assert rows is not None, at
            self._recurrent[at] = recurrent.to(rows.dtype)

    def finish(self) -> None:
        """Write all rows back, because a kernel may have changed some of them in place. Call `convert` before."""
        for at, conv in self._conv.items():
            self._rows.conv(*at).index_copy_(0, self._slots_B, conv)
        for at, recurrent in self._recurrent.items():
            rows = self._rows.recurrent(*at)
            assert rows is not None, at
            rows.index_copy_(0, self._slots_B, recurrent)
