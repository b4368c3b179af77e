"""Finds what layers other than attention carry from token to token, by running a text with transformers' own cache."""

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
