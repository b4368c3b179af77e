"""What layers other than attention carry from token to token: a row per slot and layer, and a scratch row."""

# S slots

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, LinearAttentionCacheLayerMixin


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One state of one layer: what a convolution and what a recurrence remember of a text. Shapes are of one row."""

    layer: int
    index: int  # layers may have several
    conv_shape: tuple[int, ...]
    conv_dtype: torch.dtype
    recurrent_shape: tuple[int, ...] | None  # None: there is a convolution only
    recurrent_dtype: torch.dtype | None


def carries_state(config: Any) -> bool:
    """Whether transformers' own cache for this model holds more than keys and values."""
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def layers_without_past(config: Any) -> frozenset[int]:
    """The layers that store nothing by what transformers knows of the model: MLPs and experts between the others,
    and attention that reads what another layer stored.
    """
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    return frozenset(index for index, layer in enumerate(cache.layers) if isinstance(layer, DummyLayer))


def find_states(model: Any, text_1L: torch.Tensor) -> tuple[StateSpec, ...]:
    """Run a text with transformers' own cache and look at what its layers have kept."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    with torch.inference_mode():
        call_with_cache(model, cache, input_ids=text_1L)
    specs = []
    for layer, kept in enumerate(cache.layers):
        if not isinstance(kept, LinearAttentionCacheLayerMixin):
            continue
        for index, conv in kept.conv_states.items():
            recurrent = kept.recurrent_states[index]
            if conv is not None:
                specs.append(
                    StateSpec(
                        layer=layer,
                        index=index,
                        conv_shape=tuple(conv.shape[1:]),
                        conv_dtype=conv.dtype,
                        recurrent_shape=None if recurrent is None else tuple(recurrent.shape[1:]),
                        recurrent_dtype=None if recurrent is None else recurrent.dtype,
                    )
                )
    return tuple(specs)


def call_with_cache(model: Any, cache: Any, **inputs: Any) -> Any:
    """Pure state models have another name for their cache, and no positions."""
    if "cache_params" in model.forward.__annotations__:
        inputs.pop("position_ids", None)
        return model(cache_params=cache, **inputs)
    return model(past_key_values=cache, **inputs)


class StateRows:
    """The rows of all slots, `[S + 1, ...]` per state; the last one is scratch."""

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
        """A text begins: nothing was before it."""
        for rows in (*self._conv.values(), *self._recurrent.values()):
            rows.index_fill_(0, slots, 0)

    def conv(self, layer: int, index: int) -> torch.Tensor:
        return self._conv[layer, index]

    def recurrent(self, layer: int, index: int) -> torch.Tensor | None:
        return self._recurrent.get((layer, index))
