"""Finds the states that layers carry from token to token, by running a text with transformers' own cache."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import LinearAttentionCacheLayerMixin

_DUMMY_LAYER: Any = getattr(cache_utils, "DummyLayer", None)  # None before transformers 5.23
_TYPES_WITHOUT_PAST = frozenset({"mlp", "moe"})  # in configs


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One state of one layer: the memory of a convolution and of a recurrence. Shapes are of one row."""

    layer: int
    index: int  # number of the state, because a layer may have several
    conv_shape: tuple[int, ...]
    conv_dtype: torch.dtype
    recurrent_shape: tuple[int, ...] | None  # None: the state is of a convolution alone
    recurrent_dtype: torch.dtype | None


def carries_state(config: Any) -> bool:
    """Whether transformers' own cache for this model holds more than keys and values."""
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def layers_without_past(config: Any) -> frozenset[int]:
    """Return the layers that store nothing, as transformers' cache for the model says.

    Such layers are MLPs and experts between the others, and attention that reads the keys and values of another layer.
    """
    text_config = config.get_text_config(decoder=True)
    cache = DynamicCache(config=text_config)
    if _DUMMY_LAYER is not None:
        return frozenset(index for index, layer in enumerate(cache.layers) if isinstance(layer, _DUMMY_LAYER))
    # Earlier versions leave out the last layers where these read what others store, and name the others by their types.
    types = getattr(text_config, "layer_types", None) or ()
    without = {index for index, kind in enumerate(types) if kind in _TYPES_WITHOUT_PAST}
    return frozenset(without | set(range(len(cache.layers), int(text_config.num_hidden_layers))))


def find_states(model: Any, text_1L: torch.Tensor) -> tuple[StateSpec, ...]:
    """Return the states that the layers have kept after a text with transformers' own cache."""
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
    """Call a model with a cache. Models of states alone have another name for the cache, and no positions."""
    if "cache_params" in model.forward.__annotations__:
        inputs.pop("position_ids", None)
        return model(cache_params=cache, **inputs)
    return model(past_key_values=cache, **inputs)
