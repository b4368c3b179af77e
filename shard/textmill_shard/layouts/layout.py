"""A model with its weights on one side, and what computes its steps on the other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.model.runner import StepDecoder
from textmill_shard.native.kernels import Kernels
from textmill_shard.probing.cache_probe import PaddedFinding, probe_padded
from textmill_shard.probing.call_observer import CallObserver
from textmill_shard.probing.probe import ProbeResult, probe_model

_Found = TypeVar("_Found")


class Once(Generic[_Found]):
    """Runs a probe at the first call. Later calls give what the probe found, or raise its UnsupportedModelError again.

    With the finding comes the observer that watched the probe's forward.
    """

    def __init__(self, model: nn.Module, probe: Callable[[], _Found]) -> None:
        self._model = model
        self._probe = probe
        self._found: tuple[_Found, CallObserver] | None = None
        self._refusal: str | None = None

    def __call__(self) -> tuple[_Found, CallObserver]:
        if self._refusal is not None:
            raise UnsupportedModelError(self._refusal)
        if self._found is None:
            try:
                with CallObserver(self._model) as calls:
                    self._found = self._probe(), calls
            except UnsupportedModelError as refusal:
                self._refusal = str(refusal)
                raise
        return self._found


class FilledModel:
    """A model with its weights, what is known before it has run, and the two ways to probe it."""

    def __init__(
        self,
        model: Any,
        *,
        texts: tuple[torch.Tensor, ...],
        device: torch.device,
        max_tokens: int,
        rope_border: int | None,
        decoder_prompt_ids: tuple[int, ...] = (),
        max_encoder_tokens: int = 0,
        num_divided_layers: int = 0,
    ) -> None:
        self.model = model
        self.texts = texts  # `[L]` int64 each, to look at the model with
        self.device = device
        self.max_tokens = max_tokens  # longest sequence the positions (of the decoder) allow, 0 = unbounded
        self.rope_border = rope_border
        self.decoder_prompt_ids = decoder_prompt_ids  # empty: the model has no encoder
        self.max_encoder_tokens = max_encoder_tokens
        self.num_divided_layers = num_divided_layers  # among the ranks
        self.probe: Once[ProbeResult] = Once(model, lambda: probe_model(model, texts=texts, max_tokens=max_tokens))
        self.padded_probe: Once[PaddedFinding] = Once(model, lambda: probe_padded(model, texts=texts))


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """What is on this rank to run a model with, and what the operator switched off."""

    num_slots: int
    num_ranks: int
    kernels: Kernels | None
    wants_native_decoder: bool
    disabled_swaps: tuple[str, ...] = ()  # of module_swaps.SWAPS


@dataclass(frozen=True, slots=True)
class Layout:
    """What computes a step, and what the model itself says to the texts."""

    name: str  # "flat", "state", "padded" or "encoder_decoder"
    decoder: StepDecoder
    kv_specs: tuple[LayerKvSpec, ...]
    logits_V_by_text: tuple[torch.Tensor, ...]
    weight_bytes: int
    state_bytes: int = 0
    is_native: bool = False
    swaps: dict[str, int] = field(default_factory=dict)  # layers that native ones stand in for, by swap


def find_decoder(model: Any) -> Any:
    """Give the part that hands hidden states to the head. Raises UnsupportedModelError."""
    decoder = model.get_decoder()
    if decoder is not model:
        return decoder
    # Wrappers whose names transformers does not know: the one part that is a model of its own.
    parts = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if len(parts) != 1:
        raise UnsupportedModelError(f"models of type {model.config.model_type} have no decoder that is known")
    return parts[0]


def weight_bytes(model: nn.Module) -> int:
    """Count parameters and buffers of this rank; tied tensors count once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
