"""Finds what the attention layers of a model store, from what transformers' own caches hold after a text."""

# L tokens of a text, V vocabulary

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.probing.start_check import CALL_ERRORS


@dataclass(frozen=True, slots=True)
class PaddedFinding:
    """The layers of a decoder with attention code of its own."""

    layers: tuple[int, ...]  # the model's own numbers of the layers, in the order of the specs
    specs: tuple[LayerKvSpec, ...]
    logits_V_by_text: tuple[torch.Tensor, ...]  # float32, of the last token of each text


@dataclass(frozen=True, slots=True)
class EncoderFinding:
    """The layers of a decoder that also attends to the text that an encoder has read."""

    specs: tuple[LayerKvSpec, ...]  # per layer of the decoder; equal for its own tokens and for the encoder's tokens
    logits_V_by_text: tuple[torch.Tensor, ...]  # float32, of the last token of each text


def probe_padded(model: Any, *, texts: tuple[torch.Tensor, ...]) -> PaddedFinding:
    """Run each text (`[L]` int64) alone by the model's own attention. Raises UnsupportedModelError with the reason."""
    config = model.config.get_text_config(decoder=True)
    model.set_attn_implementation("eager")
    try:
        cache = DynamicCache(config=config)
        with torch.inference_mode():
            model(input_ids=texts[0].unsqueeze(0), past_key_values=cache, use_cache=True)
            logits = [model(input_ids=text_L.unsqueeze(0), use_cache=False).logits[0, -1].float() for text_L in texts]
    except CALL_ERRORS as error:
        raise UnsupportedModelError(f"its own attention fails with transformers' cache: {error}") from error
    specs = {index: spec for index, layer in enumerate(cache.layers) if (spec := _spec_of(layer)) is not None}
    num_layers = getattr(config, "num_hidden_layers", None) or len(cache.layers)
    if not specs or len(specs) < num_layers:
        raise UnsupportedModelError(
            f"of {num_layers} layers only {len(specs)} keep keys and values in transformers' cache"
        )
    return PaddedFinding(layers=tuple(specs), specs=tuple(specs.values()), logits_V_by_text=tuple(logits))


def probe_encoder_decoder(
    model: Any, *, texts: tuple[torch.Tensor, ...], encoder_lens: tuple[int, ...]
) -> EncoderFinding:
    """Run each text (`[L]` int64) alone and without a cache.

    The encoder reads the first tokens of a text, and the decoder reads the others. Raises UnsupportedModelError with
    the reason.
    """
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    logits = []
    try:
        with torch.inference_mode():
            for text_L, num_read in zip(texts, encoder_lens, strict=True):
                ids = {"input_ids": text_L[None, :num_read], "decoder_input_ids": text_L[None, num_read:]}
                logits.append(model(**ids, use_cache=False).logits[0, -1].float())
            model(**ids, past_key_values=cache, use_cache=False)
    except CALL_ERRORS as error:
        raise UnsupportedModelError(f"models of type {model.config.model_type} cannot be served: {error}") from error
    own = [_spec_of(layer) for layer in cache.self_attention_cache.layers]
    cross = [_spec_of(layer) for layer in cache.cross_attention_cache.layers]
    specs = tuple(spec for spec in own if spec is not None)
    if not own or len(specs) < len(own) or own != cross:
        raise UnsupportedModelError(
            f"models of type {model.config.model_type} cannot be served yet: their decoders keep other keys and values "
            "of what the encoder read than of their own tokens"
        )
    return EncoderFinding(specs=specs, logits_V_by_text=tuple(logits))


def _spec_of(layer: Any) -> LayerKvSpec | None:
    """Return what a layer of a cache holds per token.

    None: the layer does not hold keys `[1, K, L, D]` and values `[1, K, L, E]`.
    """
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if not (torch.is_tensor(keys) and torch.is_tensor(values) and keys.dim() == values.dim() == 4 and keys.numel()):
        return None
    return LayerKvSpec(num_local_kv_heads=keys.shape[1], key_dim=keys.shape[3], value_dim=values.shape[3])
