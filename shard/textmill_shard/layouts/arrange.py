"""How a step runs through a model: natively, as one flat row, over state rows, or through a padded view of the pool."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from textmill_shard.attention.base import AttentionBackend
from textmill_shard.attention.cpu import CpuAttention
from textmill_shard.attention.reference import ReferenceAttention
from textmill_shard.attention.seam import PAGED_ATTENTION, PagedLayer, StepContext, attach_layer, register_attention
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.layers.module_swaps import swap_modules
from textmill_shard.layouts.decoder_tap import DecoderTap
from textmill_shard.layouts.encoder_decoder import EncoderDecoder, probe_encoder_decoder
from textmill_shard.layouts.flat_decoder import TransformersDecoder
from textmill_shard.layouts.native_decoder import NativeDecoder, why_not_native
from textmill_shard.layouts.padded_view import PaddedCaller, probe_padded
from textmill_shard.layouts.rope_tables import choose_long_tables_by_token
from textmill_shard.layouts.row_positions import RowPositions
from textmill_shard.layouts.split_decoder import RunDecoder
from textmill_shard.layouts.state_caller import StateCaller
from textmill_shard.layouts.state_rows import StateRows
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.model.runner import StepDecoder
from textmill_shard.native.kernels import Kernels
from textmill_shard.probing.call_observer import CallObserver
from textmill_shard.probing.probe import ProbeResult, probe_model
from textmill_shard.probing.start_check import CALL_ERRORS, PROBE_ENCODER_LENS


@dataclass(frozen=True, slots=True)
class LayoutRequest:
    """A model with its weights, and what is known before it has run."""

    model: Any
    texts: tuple[torch.Tensor, ...]  # `[L]` int64 each, to look at the model with
    device: torch.device
    max_tokens: int  # longest sequence the positions allow, 0 = unbounded
    rope_border: int | None
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
    why_not_native: str | None = None  # why transformers' code runs this model; None = the native decoder does
    swaps: dict[str, int] = field(default_factory=dict)  # layers of that code which native ones stand in for, by swap

    @property
    def is_native(self) -> bool:
        return self.why_not_native is None


def arrange(request: LayoutRequest) -> Layout:
    """Through transformers' attention interface. Raises UnsupportedModelError with the reason."""
    model, kernels = request.model, request.kernels
    with CallObserver(model) as calls:
        probe = probe_model(model, texts=request.texts, max_tokens=request.max_tokens)
    specs = tuple(layer.spec for layer in probe.layers)
    reason = _why_not_native(request, probe)
    if reason is None:
        assert kernels is not None
        native = NativeDecoder(model, [layer.rule for layer in probe.layers], kernels)
        return Layout("flat", native, specs, probe.logits_V_by_text, native.num_bytes)
    backend: AttentionBackend = ReferenceAttention() if kernels is None else CpuAttention(kernels)
    context = _attach(model, probe, backend, rope_border=request.rope_border)
    tap = DecoderTap(_find_decoder(model))
    swaps = _swap(request, {layer.module for layer in probe.layers}, calls)
    if not probe.states:
        flat = TransformersDecoder(model, context, tap, device=request.device, has_own_threads=bool(swaps))
        return Layout(
            "flat", flat, specs, probe.logits_V_by_text, _weight_bytes(model), why_not_native=reason, swaps=swaps
        )
    rows = StateRows(probe.states, num_slots=request.num_slots, device=request.device)
    caller = StateCaller(model, context, rows, device=request.device)
    return Layout(
        "state",
        RunDecoder(model, caller, tap, device=request.device),
        specs,
        probe.logits_V_by_text,
        _weight_bytes(model),
        state_bytes=rows.num_bytes,
        why_not_native=reason,
        swaps=swaps,
    )


def arrange_padded(request: LayoutRequest) -> Layout:
    """Through the model's own attention code. Raises UnsupportedModelError with the reason."""
    if request.num_ranks > 1:
        raise UnsupportedModelError("it cannot be divided among shards; use --num-shard 1")
    if request.rope_border is not None:
        raise UnsupportedModelError("its rotary tables would depend on the other requests of a step")
    model = request.model
    with CallObserver(model) as calls:
        finding = probe_padded(model, texts=request.texts)
    tap = DecoderTap(_find_decoder(model))
    swaps = _swap(request, (), calls)
    caller = PaddedCaller(model, finding.layers)
    decoder = RunDecoder(model, caller, tap, device=request.device)
    return Layout(
        "padded",
        decoder,
        finding.specs,
        finding.logits_V_by_text,
        _weight_bytes(model),
        why_not_native="attention is the model's own code",
        swaps=swaps,
    )


def arrange_encoder_decoder(request: LayoutRequest) -> Layout:
    """Each text through the encoder alone, decoders in one batch. Raises UnsupportedModelError with the reason."""
    model = request.model
    _check_reads_alone(model.config)
    finding = probe_encoder_decoder(model, texts=request.texts, encoder_lens=PROBE_ENCODER_LENS)
    pad_id = getattr(model.config, "pad_token_id", None)
    try:
        positions = RowPositions(
            model.get_decoder(),
            num_positions=request.max_tokens,
            text_id=next(token_id for token_id in range(2) if token_id != pad_id),
            device=request.device,
        )
    except CALL_ERRORS as error:
        raise UnsupportedModelError(
            f"models of type {model.config.model_type} cannot be served yet: the positions of their decoders cannot be "
            f"told ({type(error).__name__}: {error})"
        ) from error
    decoder = EncoderDecoder(model, positions, num_layers=len(finding.specs), device=request.device)
    return Layout(
        "encoder_decoder",
        decoder,
        finding.specs,
        finding.logits_V_by_text,
        _weight_bytes(model),
        why_not_native="there is an encoder",
    )


def _check_reads_alone(config: Any) -> None:
    """Short texts, as the start check runs, would not show this. Raises UnsupportedModelError."""
    if getattr(config, "attention_type", None) == "block_sparse":
        raise UnsupportedModelError(
            f"models of type {config.model_type} with block-sparse attention cannot be served: a short text switches "
            "their encoders to full attention for all that come after it; `attention_type` can be `original_full`"
        )


def _swap(request: LayoutRequest, attention_modules: Collection[nn.Module], calls: CallObserver) -> dict[str, int]:
    """Let native layers stand in for what the probe saw; give how many, by swap."""
    if request.kernels is None:
        return {}
    return swap_modules(request.model, calls, attention_modules, request.kernels, disabled=request.disabled_swaps)


def _attach(model: Any, probe: ProbeResult, backend: AttentionBackend, *, rope_border: int | None) -> StepContext:
    """Let the model's attention layers read the paged pool."""
    context = StepContext(backend=backend)
    if rope_border is not None:
        choose_long_tables_by_token(model, context, border=rope_border)
    register_attention()
    model.set_attn_implementation(PAGED_ATTENTION)
    for index, layer in enumerate(probe.layers):
        attach_layer(layer.module, PagedLayer(context=context, index=index, rule=layer.rule))
    return context


def _why_not_native(request: LayoutRequest, probe: ProbeResult) -> str | None:
    """Give why transformers' code runs this model; None: the native decoder does."""
    if request.kernels is None:
        return "there are no native kernels"
    if not request.wants_native_decoder:
        return "it is switched off"
    if request.num_ranks > 1:
        return "the model is divided among ranks"
    if request.rope_border is not None:
        return "there is a rotary table per request"
    if probe.states:
        return "layers carry state from token to token"
    return why_not_native(request.model, [layer.rule for layer in probe.layers])


def _find_decoder(model: Any) -> Any:
    """The part that gives hidden states to the head."""
    decoder = model.get_decoder()
    if decoder is not model:
        return decoder
    # Wrappers whose names transformers does not know: the one part that is a model of its own.
    parts = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if len(parts) != 1:
        raise UnsupportedModelError(f"models of type {model.config.model_type} have no decoder that is known")
    return parts[0]


def _weight_bytes(model: nn.Module) -> int:
    """Parameters and buffers of this rank; tied tensors count once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
