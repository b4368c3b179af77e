"""A stand-in for transformers' cache: stores nothing, and tells layers that count tokens where each one stands."""

# T tokens of the step

from typing import Any

import torch
from transformers import Cache


class PositionCache(Cache):  # type: ignore[misc]
    """Given as `past_key_values` of a flat forward `[1, T]`; K and V go to the pool in the attention function.

    Layers that scale by the position (Llama 4) count `arange(T) + get_seq_length(layer)`: what it gives makes that
    come out as the token's position in its own text. A model that asks for no layer in particular wants to know what
    `position_ids` tell it already, and hears that nothing came before.
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
