"""Layouts for models with attention code of their own, which read a padded view of the pool as their cache."""

from collections.abc import Mapping

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.layers.adapted_modules import AdaptedModules
from textmill_shard.layers.module_swaps import swap_modules
from textmill_shard.layouts.adaptable import adaptable_linears
from textmill_shard.layouts.decoder_tap import DecoderTap
from textmill_shard.layouts.layout import FilledModel, Layout, LayoutOptions, find_decoder, weight_bytes
from textmill_shard.layouts.padded_view import PaddedCaller
from textmill_shard.layouts.split_decoder import RunDecoder
from textmill_shard.model.adapter import LinearPart
from textmill_shard.probing.cache_probe import PaddedFinding


def arrange_padded_swapped(filled: FilledModel, options: LayoutOptions) -> Layout:
    """Return a layout of the model's code with native layers.

    Raises UnsupportedModelError where no layer can be swapped.
    """
    _check_can_be_padded(filled, options)
    finding, calls = filled.padded_probe()
    linears = adaptable_linears(filled, calls)
    if options.kernels is None:
        raise UnsupportedModelError("there are no native kernels")
    find_decoder(filled.model)  # a refusal must come before a layer is swapped
    swaps = swap_modules(filled.model, calls, (), options.kernels, disabled=options.disabled_swaps)
    if not swaps:
        raise UnsupportedModelError("no layer can be swapped")
    return _arrange(filled, options, finding, linears, swaps)


def arrange_padded(filled: FilledModel, options: LayoutOptions) -> Layout:
    """Return a layout of the model's code alone. Raises UnsupportedModelError with the reason."""
    _check_can_be_padded(filled, options)
    finding, calls = filled.padded_probe()
    return _arrange(filled, options, finding, adaptable_linears(filled, calls), {})


def _check_can_be_padded(filled: FilledModel, options: LayoutOptions) -> None:
    if options.parallel.world_size > 1:
        raise UnsupportedModelError("it cannot be divided among shards; use --num-shard 1")
    if filled.rope_border is not None:
        raise UnsupportedModelError("its rotary tables would depend on the other requests of a step")


def _arrange(
    filled: FilledModel,
    options: LayoutOptions,
    finding: PaddedFinding,
    linears: Mapping[str, LinearPart],
    swaps: dict[str, int],
) -> Layout:
    model = filled.model
    adapters = AdaptedModules(
        model, tuple(linears), device=filled.device, kernels=options.kernels, device_kernels=options.device_kernels
    )
    tap = DecoderTap(find_decoder(model))
    decoder = RunDecoder(model, PaddedCaller(model, finding.layers), tap, adapters, device=filled.device)
    return Layout(
        "padded",
        decoder,
        finding.specs,
        finding.logits_V_by_text,
        weight_bytes(model),
        adapters=adapters,
        linears=linears,
        swaps=swaps,
    )
