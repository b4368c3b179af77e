"""Layouts for models that call transformers' attention interface: natively, as one flat row, or over state rows."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import nn

from textmill_shard.attention.base import AttentionBackend
from textmill_shard.attention.deferred_turn import DeferredTurn
from textmill_shard.attention.seam import (
    PAGED_ATTENTION,
    PagedLayer,
    StepContext,
    attach_layer,
    register_attention,
    set_text_attention,
)
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.layers.adapted_modules import AdaptedModules
from textmill_shard.layers.device_swaps import swap_for_device
from textmill_shard.layers.module_swaps import swap_modules
from textmill_shard.layers.parallel_layers import let_head_give_part
from textmill_shard.layouts.adaptable import adaptable_linears
from textmill_shard.layouts.decoder_tap import DecoderTap
from textmill_shard.layouts.device_constants import keep_constants
from textmill_shard.layouts.flat_decoder import TransformersDecoder
from textmill_shard.layouts.layout import FilledModel, Layout, LayoutOptions, find_decoder, weight_bytes
from textmill_shard.layouts.native_decoder import NativeDecoder, why_not_native
from textmill_shard.layouts.rope_tables import choose_long_tables_by_token
from textmill_shard.layouts.split_decoder import RunDecoder
from textmill_shard.layouts.state_cache import check_states_can_be_asked
from textmill_shard.layouts.state_caller import StateCaller
from textmill_shard.layouts.state_rows import StateRows
from textmill_shard.model.adapter import LinearPart
from textmill_shard.model.media_inputs import MediaInputs
from textmill_shard.probing.probe import ProbeResult

Turns: TypeAlias = Mapping[nn.Module, DeferredTurn]


def arrange_native(filled: FilledModel, options: LayoutOptions) -> Layout:
    """One native call per step; packs the weights. Raises UnsupportedModelError with the reason, weights untouched."""
    reason = _why_not_native(filled, options)
    if reason is not None:
        raise UnsupportedModelError(reason)
    assert options.kernels is not None
    probe, _ = filled.probe()
    tower = filled.tower
    native = NativeDecoder(
        filled.model,
        [layer.rule for layer in probe.layers],
        options.kernels,
        options.parallel,
        has_rope_positions=tower is not None and tower.has_rope_positions,
    )
    return Layout(
        "flat",
        native,
        tuple(layer.spec for layer in probe.layers),
        probe.logits_V_by_text,
        native.num_bytes + (0 if tower is None else tower.num_bytes),
        adapters=native,
        linears=native.linears_of(filled.linears),
        is_native=True,
        vocabulary_sizes=native.vocabulary_sizes,
    )


def arrange_swapped(filled: FilledModel, options: LayoutOptions) -> Layout:
    """Return a layout of transformers' code with native layers, or on a GPU with the kernels' part in the layers.

    Raises UnsupportedModelError where no layer can be swapped.
    """
    probe, calls = filled.probe()
    linears = adaptable_linears(filled, calls)
    if options.kernels is None and options.device_kernels is None:
        raise UnsupportedModelError("there are no native kernels")
    find_decoder(filled.model)  # a refusal must come before a layer is swapped
    attention_modules = [layer.module for layer in probe.layers]
    disabled = options.disabled_swaps
    turns: Turns = {}
    if options.kernels is not None:
        swaps = swap_modules(filled.model, calls, set(attention_modules), options.kernels, disabled=disabled)
    else:
        assert options.device_kernels is not None
        swapped = swap_for_device(
            filled.model, calls, attention_modules, filled.texts[0], options.device_kernels, disabled=disabled
        )
        swaps, turns = swapped.counts, swapped.turns
    if not swaps:
        raise UnsupportedModelError("no layer can be swapped")
    return _arrange(filled, options, probe, linears, swaps, turns)


def arrange_plain(filled: FilledModel, options: LayoutOptions) -> Layout:
    """Return a layout of transformers' code alone. Raises UnsupportedModelError with the reason."""
    probe, calls = filled.probe()
    return _arrange(filled, options, probe, adaptable_linears(filled, calls), {}, {})


def _arrange(
    filled: FilledModel,
    options: LayoutOptions,
    probe: ProbeResult,
    linears: Mapping[str, LinearPart],
    swaps: dict[str, int],
    turns: Turns,
) -> Layout:
    model, device = filled.model, filled.device
    modules = dict(model.named_modules())
    linears = {path: part for path, part in linears.items() if path in modules}  # a swap may have taken layers away
    adapters = AdaptedModules(
        model, tuple(linears), device=device, kernels=options.kernels, device_kernels=options.device_kernels
    )
    specs = tuple(layer.spec for layer in probe.layers)
    context = _attach(model, probe, options.attention, turns, rope_border=filled.rope_border)
    tap = DecoderTap(find_decoder(model))
    if filled.tower is not None and probe.states:
        raise UnsupportedModelError("its layers carry state from token to token, beside which images are not computed")
    if not probe.states:
        flat = TransformersDecoder(
            model,
            context,
            tap,
            adapters,
            device=device,
            has_own_threads=options.kernels is not None and bool(swaps),
            media=None if filled.tower is None else MediaInputs.of(model),
        )
        return Layout(
            "flat",
            flat,
            specs,
            probe.logits_V_by_text,
            weight_bytes(model),
            adapters=adapters,
            linears=linears,
            swaps=swaps,
            routes_by_text=probe.routes_by_text,
            vocabulary_sizes=let_head_give_part(model),
        )
    check_states_can_be_asked()
    rows = StateRows(probe.states, num_slots=options.num_slots, device=device)
    caller = StateCaller(model, context, rows, device=device)
    return Layout(
        "state",
        RunDecoder(model, caller, tap, adapters, device=device),
        specs,
        probe.logits_V_by_text,
        weight_bytes(model),
        adapters=adapters,
        linears=linears,
        states=rows,
        swaps=swaps,
        routes_by_text=probe.routes_by_text,
    )


def _attach(
    model: Any,
    probe: ProbeResult,
    backend: AttentionBackend,
    turns: Turns,
    *,
    rope_border: int | None,
) -> StepContext:
    """Let the model's attention layers read the paged pool, and return the context that they share."""
    context = StepContext(backend=backend)
    keep_constants(model, context)
    if rope_border is not None:
        choose_long_tables_by_token(model, context, border=rope_border)
    register_attention()
    set_text_attention(model, PAGED_ATTENTION)
    for index, layer in enumerate(probe.layers):
        rule = backend.accept(layer.rule, layer.spec)
        paged = PagedLayer(context=context, index=index, rule=rule, turn=turns.get(layer.module))
        attach_layer(layer.module, paged)
    return context


def _why_not_native(filled: FilledModel, options: LayoutOptions) -> str | None:
    """Return the reason why transformers' code runs this model. None: the native decoder can be tried."""
    if options.kernels is None:
        return "there are no native kernels"
    if not options.wants_native_decoder:
        return "it is switched off"
    if options.attention.name != "cpu":
        return f"attention is computed by the backend {options.attention.name}"
    if options.parallel.world_size > 1 and options.parallel.room is None:
        return "the ranks share no memory"
    if filled.rope_border is not None:
        return "there is a rotary table per request"
    probe, _ = filled.probe()
    if probe.states:
        return "layers carry state from token to token"
    return why_not_native(filled.model, [layer.rule for layer in probe.layers])
