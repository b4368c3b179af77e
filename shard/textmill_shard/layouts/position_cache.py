"""A replacement of transformers' cache, which stores nothing and tells layers that count tokens their positions."""

# T tokens of the step

from typing import Any

import torch
from transformers import Cache


class PositionCache(Cache):  # type: ignore[misc]
    """The `past_key_values` of a flat forward pass `[1, T]`. The attention function puts keys and values into the pool.

    Layers that scale by the position (Llama 4) compute `arange(T) + get_seq_length(layer)`. The offsets that
    `get_seq_length` returns to a layer make this sum the position of each token in its own text. A model that asks
    without a layer has the positions from `position_ids` already, and gets 0.
    """

    def __init__(self, position_ids_T: torch.Tensor) -> None:
        super().__init__(layers=[])
        self._offsets_T = position_ids_T - torch.arange(position_ids_T.shape[0], device=position_ids_T.device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int | None = None) -> Any:
        return 0 if layer_idx is None else self._offsets_T
