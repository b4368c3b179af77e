"""Replaces layers of transformers' code by layers of a GPU, chosen by forward passes and never by a model's name.

What a layer computes is found by running the layer, or by running its code with parts whose results are known.
"""

# I width of the hidden states, L tokens of the probe

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from textmill_shard.attention.deferred_turn import DeferredTurn, replace_turn
from textmill_shard.layers.device_experts import find_experts
from textmill_shard.layers.device_layers import (
    DeviceRmsNorm,
    GatedMlp,
    HandedOn,
    JoinedLinear,
    JoinedLinears,
    PreNormLayer,
)
from textmill_shard.layers.module_swaps import find_norm, groups_of_linears, weights_of_several
from textmill_shard.layers.swapped_layers import empty_layer
from textmill_shard.options import DEVICE_SWAPS, SWAPS
from textmill_shard.probing.call_observer import CallObserver
from textmill_shard.probing.turn_probe import find_turns
from textmill_shard.triton_kernels.interface import ACTIVATIONS, DeviceKernels

MAX_NORM_WIDTH = 16_384  # a program of the norm holds a whole row
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Largest difference from the layer, relative to the largest value, because layers may round more often.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@dataclass(frozen=True, slots=True)
class DeviceSwaps:
    """What was swapped: number of layers by swap, and the layers whose queries and keys the write of K and V turns."""

    counts: dict[str, int]
    turns: dict[nn.Module, DeferredTurn]


def swap_for_device(
    model: Any,
    calls: CallObserver,
    attention_modules: Sequence[nn.Module],
    text_L: torch.Tensor,
    kernels: DeviceKernels,
    *,
    disabled: Collection[str],
) -> DeviceSwaps:
    """Swap all layers that can be swapped. `calls` has watched a forward pass. Runs the model on `text_L` (int64)."""
    assert not set(disabled) - {*SWAPS, *DEVICE_SWAPS}, disabled
    counts: Counter[str] = Counter()
    turns: dict[nn.Module, DeferredTurn] = {}
    if "rotary_turn" not in disabled:
        for module, is_interleaved in find_turns(model, attention_modules, text_L).items():
            turns[module] = DeferredTurn(is_interleaved=is_interleaved)
            replace_turn(module, turns[module])
        counts["rotary_turn"] = len(turns)
    shared = weights_of_several(model)

    def make_norm(factor_I: torch.Tensor, epsilon: float, dtype: torch.dtype) -> DeviceRmsNorm:
        return DeviceRmsNorm(factor_I, epsilon, kernels, dtype=dtype)

    for parent in list(model.modules()):
        for names in groups_of_linears(parent, calls, shared, dtypes=_DTYPES):
            linears = [getattr(parent, name) for name in names]
            is_qkv = parent in attention_modules or len(names) > 2
            if is_qkv and "qkv" not in disabled:
                joined = JoinedLinears(linears)
                for index, name in enumerate(names):
                    setattr(parent, name, JoinedLinear(joined, index))
                counts["qkv"] += len(names)
            elif not is_qkv and "gate_up" not in disabled and _gate(parent, names, kernels):
                counts["gate_up"] += 2
        if "rms_norm" not in disabled:
            for name, child in list(parent.named_children()):
                norm = find_norm(child, calls, make_norm, _DTYPES)
                if norm is not None and norm.factor.shape[0] <= MAX_NORM_WIDTH:
                    setattr(parent, name, norm)
                    empty_layer(child)
                    counts["rms_norm"] += 1
        if "experts" not in disabled:
            experts = find_experts(parent, kernels)
            if experts is not None:
                parent.forward = experts
                counts["experts"] += 1
    calls.forget()
    if "residual" not in disabled:
        counts["residual"] = _fuse_residuals(model, attention_modules)
    order = (*SWAPS, *DEVICE_SWAPS)
    return DeviceSwaps(counts={name: counts[name] for name in order if counts[name]}, turns=turns)


def _gate(parent: nn.Module, names: Sequence[str], kernels: DeviceKernels) -> bool:
    """Let an MLP of two joined products and a gate take the place of the parent's forward, if both give the same."""
    others = [child for name, child in parent.named_children() if name not in names and list(child.parameters())]
    if len(names) != 2 or len(others) != 1 or parent._forward_hooks or "forward" in vars(parent):
        return False
    first, second = (getattr(parent, name) for name in names)
    weight_OI = first.weight
    if first.weight.shape != second.weight.shape or weight_OI.dtype not in _DTYPES:
        return False
    x = torch.randn(2, 3, weight_OI.shape[1], generator=torch.Generator().manual_seed(0))
    x = x.to(weight_OI.dtype).to(weight_OI.device)
    try:
        with torch.inference_mode():
            expected = parent(x)
    except Exception:  # a parent that is no MLP wants other arguments
        return False
    if not torch.is_tensor(expected) or expected.shape[:-1] != x.shape[:-1]:
        return False
    for activation in ACTIVATIONS:
        for order in ((0, 1), (1, 0)):
            gate, up = (getattr(parent, names[place]) for place in order)
            if not _is_close(GatedMlp(gate, up, others[0], activation, kernels), x, expected):
                continue
            joined = JoinedLinears([getattr(parent, name) for name in names])
            for place, name in enumerate(names):
                setattr(parent, name, JoinedLinear(joined, place))
            gate, up = (getattr(parent, names[place]) for place in order)
            parent.forward = GatedMlp(gate, up, others[0], activation, kernels)
            return True
    return False


def _is_close(layer: GatedMlp, x: torch.Tensor, expected: torch.Tensor) -> bool:
    with torch.inference_mode():
        found = layer(x)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    difference: float = (found.float() - expected.float()).abs().max().item()
    return difference <= _TOLERANCE[x.dtype] * expected.float().abs().max().item()


def _fuse_residuals(model: Any, attention_modules: Sequence[nn.Module]) -> int:
    """Give all layers of the form norm, attention, sum, norm, MLP, sum a forward with two launches for sums and norms.

    Returns the number of these layers.
    """
    attention = set(attention_modules)
    last: PreNormLayer | None = None
    hands_on = HandedOn()
    count = 0
    for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for layer in layers:
            form = _pre_norm_form(layer, attention)
            if form is None:
                last = None  # the layer between adds by itself
                continue
            first_norm, attends, second_norm, mlp = form
            fused = PreNormLayer(
                first_norm=first_norm, attention=attends, second_norm=second_norm, mlp=mlp, hands_on=hands_on
            )
            layer.forward = fused
            if last is not None:
                last.next_norm = first_norm
            last = fused
            count += 1
        last = None
    return count


def _pre_norm_form(
    layer: Any, attention: Collection[nn.Module]
) -> tuple[DeviceRmsNorm, nn.Module, DeviceRmsNorm, nn.Module] | None:
    """Return the parts of a layer of that form in the order in which they run, or None.

    The layer's own code runs once with an attention and an MLP that return known tensors.
    """
    parts = dict(layer.named_children())
    norms = [part for part in parts.values() if isinstance(part, DeviceRmsNorm)]
    attends = [name for name, part in parts.items() if part in attention]
    others = [name for name, part in parts.items() if part not in attention and not isinstance(part, DeviceRmsNorm)]
    if len(norms) != 2 or len(attends) != 1 or len(others) != 1 or len(parts) != 4 or "forward" in vars(layer):
        return None
    norm = norms[0]
    generator = torch.Generator().manual_seed(1)
    shape = (1, 3, norm.factor.shape[0])
    x, attended, added = (
        torch.randn(shape, generator=generator).to(norm.weight.dtype).to(norm.factor.device) for _ in range(3)
    )
    seen: dict[str, Any] = {}
    with _stood_in(layer, {attends[0]: (attended, None), others[0]: added}, seen):
        try:
            with torch.inference_mode():
                out = layer.forward(x, textmill_mark=seen)
        except Exception:  # the layer's code does something else than this form
            return None
    if not torch.is_tensor(out) or out.shape != x.shape or seen.get("mark") is not seen:
        return None
    for first, second in ((norms[0], norms[1]), (norms[1], norms[0])):
        total = x + attended
        with torch.inference_mode():
            expected = {attends[0]: first(x), others[0]: second(total), "out": total + added}
        found = {**{name: seen.get(name) for name in (attends[0], others[0])}, "out": out}
        if all(torch.is_tensor(found[name]) and torch.equal(found[name], expected[name]) for name in expected):
            return first, parts[attends[0]], second, parts[others[0]]
    return None


class _StandIn(nn.Module):
    """Returns a known result, and keeps what it got."""

    def __init__(self, name: str, result: Any, seen: dict[str, Any]) -> None:
        super().__init__()
        self._name, self._result, self._seen = name, result, seen

    def forward(self, *given: Any, **named: Any) -> Any:
        self._seen[self._name] = given[0] if given else named.get("hidden_states")
        if "textmill_mark" in named:
            self._seen["mark"] = named["textmill_mark"]
        return self._result


@contextmanager
def _stood_in(layer: nn.Module, results: dict[str, Any], seen: dict[str, Any]) -> Iterator[None]:
    """Within this context, the parts of the layer with these names are stand-ins."""
    before = {name: getattr(layer, name) for name in results}
    for name, result in results.items():
        setattr(layer, name, _StandIn(name, result, seen))
    try:
        yield
    finally:
        for name, part in before.items():
            setattr(layer, name, part)
