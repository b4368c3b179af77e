"""A model with its weights, and the layout that computes the model's steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from textmill_shard.attention.base import AttentionBackend
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.layouts.image_tower import ImageTower
from textmill_shard.layouts.state_rows import StateRows
from textmill_shard.model.adapter import AdapterHost, LinearPart
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.model.runner import StepDecoder
from textmill_shard.native.kernels import Kernels
from textmill_shard.probing.cache_probe import PaddedFinding, probe_padded
from textmill_shard.probing.call_observer import CallObserver
from textmill_shard.probing.expert_routes import TextRoutes
from textmill_shard.probing.probe import NO_MARKS, ProbeResult, probe_model
from textmill_shard.triton_kernels.flash_backend import kernels_of
from textmill_shard.triton_kernels.interface import DeviceKernels

_Found = TypeVar("_Found")


class Once(Generic[_Found]):
    """Runs a probe at the first call. Later calls return the finding, or raise the probe's UnsupportedModelError again.

    A call also returns the observer that watched the probe's forward pass.
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
    """A model with its weights, the facts that are known before the model runs, and the two ways to probe the model."""

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
        linears: Mapping[str, LinearPart] | None = None,
        num_divided_layers: int = 0,
        tower: ImageTower | None = None,
    ) -> None:
        self.model = model
        self.texts = texts  # `[L]` int64 each, the texts of the probes
        self.device = device
        self.max_tokens = max_tokens  # longest sequence that the positions (of the decoder) allow, 0 = unbounded
        self.rope_border = rope_border
        self.decoder_prompt_ids = decoder_prompt_ids  # empty: the model has no encoder
        self.max_encoder_tokens = max_encoder_tokens
        self.linears = linears or {}  # all linear layers, by their paths
        self.adaptable: Mapping[str, LinearPart] | None = None  # of these, once `adaptable_linears` has looked
        self.num_divided_layers = num_divided_layers  # layers that are divided among the ranks
        self.tower = tower  # None: the model takes no images
        self.probe: Once[ProbeResult] = Once(
            model,
            lambda: probe_model(
                model,
                texts=texts,
                max_tokens=max_tokens,
                text_marks=NO_MARKS if tower is None else tower.text_marks,
                image=None if tower is None else tower.probe(model),
            ),
        )
        self.padded_probe: Once[PaddedFinding] = Once(model, lambda: probe_padded(model, texts=texts))


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """The means of this rank to run a model, and the switches of the operator."""

    num_slots: int
    parallel: TensorParallel
    kernels: Kernels | None
    attention: AttentionBackend
    wants_native_decoder: bool
    disabled_swaps: tuple[str, ...] = ()  # of options.SWAPS and options.DEVICE_SWAPS

    @property
    def device_kernels(self) -> DeviceKernels | None:
        """The kernels of a GPU, where they can be had."""
        return kernels_of(self.attention)


@dataclass(frozen=True, slots=True)
class Layout:
    """The decoder that computes a step, and the logits that the model itself has for the probe's texts."""

    name: str  # "flat", "state", "padded" or "encoder_decoder"
    decoder: StepDecoder
    kv_specs: tuple[LayerKvSpec, ...]
    logits_V_by_text: tuple[torch.Tensor, ...]
    weight_bytes: int
    adapters: AdapterHost
    linears: Mapping[str, LinearPart]  # the layers that an adapter can change
    states: StateRows | None = None  # of layers that carry state from token to token
    is_native: bool = False
    vocabulary_sizes: tuple[int, ...] | None = None  # ids of each rank, where the decoder gives a part of the logits
    swaps: dict[str, int] = field(default_factory=dict)  # number of replaced layers, by swap
    routes_by_text: tuple[TextRoutes, ...] = ()  # the experts of the texts' tokens; empty: not known


def find_decoder(model: Any) -> Any:
    """Return the part of the model that passes hidden states to the head. Raises UnsupportedModelError."""
    decoder = model.get_decoder()
    if decoder is not model:
        return decoder
    # A wrapper that transformers does not know has one part that is a model by itself.
    parts = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if len(parts) != 1:
        raise UnsupportedModelError(f"models of type {model.config.model_type} have no decoder that is known")
    return parts[0]


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of this rank's parameters and buffers; tied tensors count once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
