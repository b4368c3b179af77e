"""Runs the model once on a few tokens to find out what each attention layer is and does."""

# L tokens of the probe, H local query heads, K local key/value heads, D key width, E value width, V vocabulary

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType, TracebackType
from typing import Any, Self

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from textmill_shard.attention.base import AttentionRule
from textmill_shard.attention.seam import set_text_attention
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.model.media_inputs import MediaInputs
from textmill_shard.probing.expert_routes import RouteNotes, TextRoutes
from textmill_shard.probing.image_probe import ImageProbe
from textmill_shard.probing.mask_pattern import (
    MaskPattern,
    MaskPredicate,
    UnknownMaskError,
    find_mask_pattern,
    num_asked,
)
from textmill_shard.probing.state_probe import StateSpec, find_states, layers_without_past

PROBE_ATTENTION = "textmill_probe"
_PREDICATE_ATTRIBUTE = "textmill_mask_predicate"
# Tensors that layers pass to the attention function and that change no result.
_HARMLESS_TENSORS = frozenset({"position_ids", "cache_position"})
NO_MARKS: Mapping[str, int] = MappingProxyType({})
# Exceptions of modelling code that is called in a way for which the code was not written.
_CALL_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError)


@dataclass(frozen=True, slots=True)
class LayerFinding:
    """The facts of one attention layer."""

    module: nn.Module
    spec: LayerKvSpec
    rule: AttentionRule


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The layers in the order in which they ran, and the logits of the probe's texts."""

    layers: tuple[LayerFinding, ...]
    states: tuple[StateSpec, ...]  # of layers that carry state from token to token
    logits_V_by_text: tuple[torch.Tensor, ...]  # float32, of the last token of each text
    image: ImageProbe | None = None  # the text with an image, for a model that takes images
    image_logits_V: torch.Tensor | None = None  # float32, of its last token
    routes_by_text: tuple[TextRoutes, ...] = ()  # the experts of each text's tokens


def probe_model(
    model: Any,
    *,
    texts: tuple[torch.Tensor, ...],
    max_tokens: int,
    text_marks: Mapping[str, int] = NO_MARKS,
    image: ImageProbe | None = None,
) -> ProbeResult:
    """Run each text (`[L]` int64) alone, and then the text with an image. Only one thread may probe at a time.

    `text_marks` are arguments of the model that have a number for each token, by the number of a token of text. Raises
    UnsupportedModelError with the reason.
    """
    model_type = model.config.model_type
    logits: list[torch.Tensor] = []
    findings: list[tuple[LayerFinding, ...]] = []
    routes: list[TextRoutes] = []
    # The predicates of masks look marks up, and are asked about texts of this length.
    num_marked = num_asked(max_tokens)
    with _Recorder(max_tokens=max_tokens) as recorder:
        set_text_attention(model, PROBE_ATTENTION)
        for text_L in texts:
            try:
                with torch.inference_mode(), RouteNotes(model) as notes:
                    ids_1L = text_L.unsqueeze(0)
                    marks = {name: ids_1L.new_full((1, num_marked), mark) for name, mark in text_marks.items()}
                    output = model(input_ids=ids_1L, use_cache=False, **marks)
            except (UnknownMaskError, *_CALL_ERRORS) as error:
                raise UnsupportedModelError(f"models of type {model_type} cannot be served: {error}") from error
            logits.append(output.logits[0, -1].float())
            findings.append(recorder.take_layers())
            routes.append(notes.take())
        layers = findings[0]
        image_logits_V = None
        if image is not None:
            recorder.keeps_masks = True
            image_logits_V = _run_image(model, image)
            layers = _with_spans(layers, recorder.masks, image, model_type)
        # Layers without attention would read the neighbours of a flat batch as their own past. With small weights no
        # logit would show that fault.
        num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None) or len(layers)
        states: tuple[StateSpec, ...] = ()
        if len(layers) < num_layers or getattr(model, "_is_stateful", False):
            states = _look_for_states(model, texts[0])
    if not layers and not states:
        raise UnsupportedModelError(
            f"models of type {model_type} cannot be served yet: their attention does not go through "
            "transformers' attention interface"
        )
    num_with_state = len({*(spec.layer for spec in states)})
    num_known = len(layers) + num_with_state
    if num_known < num_layers:  # asked only here, because transformers' cache refuses configs of models with own code
        that_attend = {getattr(layer.module, "layer_idx", None) for layer in layers}
        num_known += len(layers_without_past(model.config) - that_attend)
    if num_known < num_layers:
        raise UnsupportedModelError(
            f"models of type {model_type} cannot be served yet: of {num_layers} layers {len(layers)} are attention and "
            f"{num_with_state} keep a state that this engine knows; what the others keep is not known"
        )
    if len({id(layer.module) for layer in layers}) != len(layers):
        raise UnsupportedModelError(
            f"models of type {model_type} cannot be served yet: one attention layer runs several times in a step"
        )
    return ProbeResult(
        layers=layers,
        states=states,
        logits_V_by_text=tuple(logits),
        image=image,
        image_logits_V=image_logits_V,
        routes_by_text=tuple(routes),
    )


def _run_image(model: Any, image: ImageProbe) -> torch.Tensor:
    try:
        inputs = MediaInputs.of(model)
        with torch.inference_mode(), inputs.added(image.media):
            embedded_1LD = inputs.embed(image.ids_L, image.media)
            output = model(inputs_embeds=embedded_1LD, use_cache=False, **image.arguments())
    except (UnknownMaskError, *_CALL_ERRORS) as error:
        raise UnsupportedModelError(
            f"images of models of type {model.config.model_type} cannot be served: {type(error).__name__}: {error}"
        ) from error
    logits_V: torch.Tensor = output.logits[0, -1].float()
    return logits_V


def _with_spans(
    layers: Sequence[LayerFinding], masks: Sequence[torch.Tensor], image: ImageProbe, model_type: str
) -> tuple[LayerFinding, ...]:
    """Return the layers with what they show of the tokens of an image, which see each other or do not.

    Raises UnsupportedModelError for a layer that does something else.
    """
    if len(masks) != len(layers):
        raise UnsupportedModelError(
            f"images of models of type {model_type} cannot be served: {len(layers)} layers attend to a text, "
            f"{len(masks)} to a text with an image"
        )
    found = []
    for layer, mask_LL in zip(layers, masks, strict=True):
        pattern = MaskPattern(layer.rule.window_tokens, layer.rule.chunk_tokens)
        sees_spans = pattern.sees_span(mask_LL, image.span)
        if sees_spans is None:
            raise UnsupportedModelError(
                f"images of models of type {model_type} cannot be served: their tokens see neither the tokens before "
                "them alone nor each other besides"
            )
        found.append(replace(layer, rule=replace(layer.rule, sees_spans=sees_spans)))
    return tuple(found)


def _look_for_states(model: Any, text_L: torch.Tensor) -> tuple[StateSpec, ...]:
    try:
        return find_states(model, text_L.unsqueeze(0))
    except _CALL_ERRORS as error:
        raise UnsupportedModelError(
            f"models of type {model.config.model_type} cannot be served: with transformers' own cache: {error}"
        ) from error


class _Recorder:
    """Collects the facts of the layers from transformers' registries of attention and masks while a model is probed.

    The registries keep the last recorder, which holds no layers after the probe.
    """

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._layers: list[LayerFinding] = []
        self.keeps_masks = False  # whether layers leave their masks here, and are not examined
        self.masks: list[torch.Tensor] = []  # bool `[L, L]`, in the order in which the layers ran
        self._patterns: dict[MaskPredicate, MaskPattern] = {}

    def __enter__(self) -> Self:
        AttentionInterface.register(PROBE_ATTENTION, self._attend)
        AttentionMaskInterface.register(PROBE_ATTENTION, _make_mask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._layers.clear()
        self.masks = []
        self._patterns.clear()

    def take_layers(self) -> tuple[LayerFinding, ...]:
        """Return the layers that ran since the last call, in the order in which they ran."""
        layers, self._layers = tuple(self._layers), []
        return layers

    def _pattern_of(self, predicate: MaskPredicate, device: torch.device) -> MaskPattern:
        """Return the pattern of a predicate. Layers share their masks, so each predicate is examined once."""
        if predicate not in self._patterns:
            self._patterns[predicate] = find_mask_pattern(predicate, max_tokens=self._max_tokens, device=device)
        return self._patterns[predicate]

    def _attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Compute plain attention: `[1, H, L, D]`, `[1, K, L, D]`, `[1, K, L, E]` -> `[1, L, H, E]`."""
        predicate: MaskPredicate | None = getattr(attention_mask, _PREDICATE_ATTRIBUTE, None)
        if attention_mask is None or predicate is None:
            raise UnknownMaskError("an attention layer gets a mask that transformers' mask functions did not build")
        strangers = [name for name, given in kwargs.items() if torch.is_tensor(given) and name not in _HARMLESS_TENSORS]
        if strangers:
            raise UnknownMaskError(f"an attention layer passes {', '.join(strangers)}, which this engine does not know")
        if self.keeps_masks:
            self.masks.append(attention_mask[0, 0])
            pattern = MaskPattern()
        else:
            pattern = self._pattern_of(predicate, query.device)
        scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        self._layers.append(
            LayerFinding(
                module=module,
                spec=LayerKvSpec(num_local_kv_heads=key.shape[1], key_dim=key.shape[3], value_dim=value.shape[3]),
                rule=AttentionRule(
                    scaling=scaling,
                    window_tokens=pattern.window_tokens,
                    chunk_tokens=pattern.chunk_tokens,
                    softcap=softcap,
                    sinks_H=s_aux,
                ),
            )
        )
        repeats = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(repeats, dim=1).transpose(2, 3) * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.float().masked_fill(~attention_mask, float("-inf"))
        if s_aux is not None:
            sinks = s_aux.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
            weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
        else:
            weights = scores.softmax(dim=-1)
        out = weights.to(value.dtype) @ value.repeat_interleave(repeats, dim=1)
        return out.transpose(1, 2).contiguous(), None


def _make_mask(**kwargs: Any) -> torch.Tensor:
    """Return a plain bool mask `[1, 1, L, L]` that remembers the predicate from which the mask was made.

    Which layers use a mask shows when they attend, because some models build masks that no layer takes.
    """
    mask: torch.Tensor | None = sdpa_mask(
        **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    )
    assert mask is not None
    setattr(mask, _PREDICATE_ATTRIBUTE, kwargs["mask_function"])
    return mask
