"""Replaces layers of transformers' code by native layers, chosen by a forward pass and never by a model's name.

Linear layers of one parent that got the very same tensor become one product. Other linear layers are packed alone. A
norm is replaced when its results are those of a formula. The replaced layers are freed one by one.
"""

# I width of a norm

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from textmill_shard.heap import trim_heap
from textmill_shard.layers.parallel_layers import RowParallelLinear
from textmill_shard.layers.swapped_layers import (
    LINEARS,
    FusedLinear,
    FusedLinears,
    NativeRmsNorm,
    PackedLinear,
    PackedRowLinear,
    empty_layer,
    weight_of,
)
from textmill_shard.native.kernels import DTYPES, Kernels
from textmill_shard.options import DEVICE_SWAPS, SWAPS
from textmill_shard.probing.call_observer import CallObserver

# Largest difference from the formula, relative to the largest value, because layers may round twice.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
_Norm = TypeVar("_Norm", bound=nn.Module)


def swap_modules(
    model: Any,
    calls: CallObserver,
    attention_modules: Collection[nn.Module],
    kernels: Kernels,
    *,
    disabled: Collection[str] = (),
) -> dict[str, int]:
    """Swap all layers that can be swapped, and return how many layers each swap replaced.

    `calls` has watched a forward pass. `attention_modules` are the parents that attend through transformers' interface;
    in all other parents three or more linear layers of one input count as query, key and value.
    """
    unknown = set(disabled) - {*SWAPS, *DEVICE_SWAPS}
    assert not unknown, unknown
    shared = weights_of_several(model)
    num_swapped: Counter[str] = Counter()

    def make_norm(factor_I: torch.Tensor, epsilon: float, dtype: torch.dtype) -> NativeRmsNorm:
        return NativeRmsNorm(factor_I, epsilon, kernels, dtype=dtype)

    for parent in list(model.modules()):
        before = num_swapped.total()
        for names in groups_of_linears(parent, calls, shared, dtypes=DTYPES):
            kind = "qkv" if parent in attention_modules or len(names) > 2 else "gate_up"
            if kind not in disabled:
                _fuse(parent, names, kernels)
                num_swapped[kind] += len(names)
        for name, child in list(parent.named_children()):
            if "packed_linear" not in disabled and _can_pack(child, calls, DTYPES):
                setattr(parent, name, PackedLinear(child, kernels, keeps_original=id(child.weight) in shared))
                num_swapped["packed_linear"] += 1
            elif "rms_norm" not in disabled and (norm := find_norm(child, calls, make_norm, DTYPES)) is not None:
                setattr(parent, name, norm)
                empty_layer(child)
                num_swapped["rms_norm"] += 1
        if num_swapped.total() > before:
            trim_heap()
    _join_exchanges(model)
    calls.forget()
    return {name: num_swapped[name] for name in SWAPS if num_swapped[name]}


def _join_exchanges(model: nn.Module) -> None:
    """Let the products that the ranks add up be exchanged by the call that computes them."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, RowParallelLinear) or not isinstance(child.local, PackedLinear):
                continue
            if child.parallel.room is not None:
                setattr(parent, name, PackedRowLinear(child.local, child.parallel, child.parallel.room))


def weights_of_several(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that several modules hold, because a tied embedding keeps its look-up table."""
    holders = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    return {parameter for parameter, count in holders.items() if count > 1}


def _can_pack(layer: nn.Module, calls: CallObserver, dtypes: Collection[torch.dtype]) -> bool:
    """Whether a layer is a plain linear layer whose dtype and width the kernels know, called with its input alone."""
    inputs = calls.inputs_of(layer)
    if not isinstance(layer, LINEARS) or inputs is None or layer._forward_hooks:
        return False
    weight_OI = weight_of(layer)
    if weight_OI.dtype not in dtypes or weight_OI.shape[1] * weight_OI.dtype.itemsize % 4:
        return False
    return type(layer) in LINEARS or (isinstance(layer, nn.Linear) and _is_plain_product(layer, inputs[0]))


def _is_plain_product(layer: nn.Linear, x: torch.Tensor) -> bool:
    """Whether a linear layer with a forward of its own computes the plain product; routers of experts return more."""
    with torch.inference_mode():
        expected, found = nn.functional.linear(x, layer.weight, layer.bias), layer(x)
    if not torch.is_tensor(found) or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    difference: float = ((found.float() - expected.float()).abs().max() / expected.float().abs().max()).item()
    return difference <= _TOLERANCE[layer.weight.dtype]


def groups_of_linears(
    parent: nn.Module, calls: CallObserver, shared: Collection[int], *, dtypes: Collection[torch.dtype]
) -> list[list[str]]:
    """Return the groups of two or more children that got the very same tensors, by name, in the order of the model."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, child in parent.named_children():
        inputs = calls.inputs_of(child)
        if inputs is None or not _can_pack(child, calls, dtypes) or id(child.weight) in shared:
            continue
        same = (
            *(id(tensor) for tensor in inputs),
            hash(child.weight.dtype),
        )  # ids stay unique, because the observer holds the tensors
        groups.setdefault(same, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _fuse(parent: nn.Module, names: Sequence[str], kernels: Kernels) -> None:
    linears: list[nn.Module] = [getattr(parent, name) for name in names]
    in_features = weight_of(linears[0]).shape[1]
    fused = FusedLinears(linears, kernels)
    for index, name in enumerate(names):
        setattr(parent, name, FusedLinear(fused, index, in_features=in_features))


def find_norm(
    layer: nn.Module,
    calls: CallObserver,
    make_norm: Callable[[torch.Tensor, float, torch.dtype], _Norm],
    dtypes: Collection[torch.dtype],
) -> _Norm | None:
    """Return the norm by `make_norm` (of factor, epsilon and dtype) whose results are those of the layer, or None."""
    inputs = calls.inputs_of(layer)
    epsilon = getattr(layer, "variance_epsilon", getattr(layer, "eps", None))
    parameters = dict(layer.named_parameters())
    if inputs is None or not isinstance(epsilon, float) or set(parameters) != {"weight"} or any(layer.buffers()):
        return None
    weight_I = parameters["weight"]
    if weight_I.dim() != 1 or weight_I.dtype not in dtypes or layer._forward_hooks:
        return None
    if any(tensor.dtype != weight_I.dtype or tensor.shape[-1] != weight_I.shape[0] for tensor in inputs):
        return None
    for factor_I in (weight_I.float(), 1.0 + weight_I.float()):
        norm = make_norm(factor_I, epsilon, weight_I.dtype)
        if _computes_the_same(layer, norm, weight_I):
            return norm
    return None


def _computes_the_same(layer: nn.Module, norm: nn.Module, weight_I: torch.Tensor) -> bool:
    """Compare both norms on rows with a mean, and on rows so small that the epsilon changes the result."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, weight_I.shape[0], generator=generator) + 0.5
    rows *= torch.tensor([1e-3, 3e-3, 1e-2, 0.1, 1.0, 30.0]).unsqueeze(1)
    x = rows.to(weight_I.dtype).to(weight_I.device)
    with torch.inference_mode():
        expected, found = layer(x), norm(x)
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    largest = expected.float().abs().amax(1, keepdim=True)
    difference: float = ((found.float() - expected.float()).abs() / largest).max().item()
    return difference <= _TOLERANCE[weight_I.dtype]
