"""The experts of a layer as products of groups of rows, of whose sizes the host knows nothing.

transformers computes experts by torch's `grouped_mm`. Torch has a kernel for it that runs on some GPUs alone, and else
reads the sizes of the groups on the host, in each layer of each step. There this file takes its place.
"""

# N rows, K experts of a row, P pairs of a row and one of its experts, E experts, H hidden width, I inner width

from typing import Any

import torch
from torch import nn

from textmill_shard.layers.experts import ExpertWeights, find_expert_weights
from textmill_shard.triton_kernels.interface import ACTIVATIONS, Activation, DeviceKernels, ExpertOrder
from textmill_shard.triton_kernels.tiles import expert_tile

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Largest difference from the module, relative to the largest value, because torch may round more often.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
_FAST_MAJORS = (9, 10)  # of compute capabilities
_MAX_GROUPS = 1024


class GroupedExperts:
    """The forward of a module of experts, whose parameters stay in the module."""

    def __init__(self, module: Any, kernels: DeviceKernels) -> None:
        self._module = module
        self._kernels = kernels
        self._ids_E = torch.arange(module.num_experts, device=module.down_proj.device)
        self._activation = _activation_of(module, kernels) if module.has_gate else None

    def __call__(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return `[N, H]` for rows `[N, H]`, the experts of each row and their weights (both `[N, K]`)."""
        module = self._module
        order = order_pairs(top_k_index, self._ids_E, itemsize=hidden_states.itemsize)
        if not module.has_gate:
            inner_PI = module.act_fn(self._product(hidden_states, "up_proj", order))
        elif self._activation is None:
            inner_PI = module._apply_gate(self._product(hidden_states, "gate_up_proj", order))
        else:
            gate_PI, up_PI = self._product(hidden_states, "gate_up_proj", order).chunk(2, dim=-1)
            inner_PI = self._kernels.gate_up(gate_PI, up_PI, self._activation)
        out_PH = self._product(inner_PI, "down_proj", order)
        if getattr(module, "has_post_expert_norm", False):
            out_PH = module.post_expert_norm(out_PH)
        weighted_PH = out_PH * top_k_weights.reshape(-1, 1)
        return weighted_PH.view(*top_k_index.shape, -1).sum(dim=1).to(hidden_states.dtype)

    def _product(self, x: torch.Tensor, name: str, order: ExpertOrder) -> torch.Tensor:
        module = self._module
        biases_EO = getattr(module, f"{name}_bias") if module.has_bias else None
        return self._kernels.expert_product(
            x, getattr(module, name), biases_EO, order, has_inputs_first=module.is_transposed
        )


def order_pairs(experts_NK: torch.Tensor, ids_E: torch.Tensor, *, itemsize: int) -> ExpertOrder:
    """Return the pairs of rows with their experts in the order of the experts, whose ids are given too (both int64).

    `itemsize` is that of the numbers that will be multiplied.
    """
    sorted_P, pairs_P = experts_NK.reshape(-1).sort()
    ends_E = torch.searchsorted(sorted_P, ids_E, right=True, out_int32=True)
    tile = expert_tile(itemsize=itemsize, num_pairs=len(pairs_P), num_experts=len(ids_E))
    return ExpertOrder(tile, pairs_P, ends_E)


def find_experts(module: nn.Module, kernels: DeviceKernels) -> GroupedExperts | None:
    """Return the forward that a module of experts gets.

    None where the module has no experts, where torch's own products let the host wait for nothing, or where the module
    computes something else.
    """
    weights = find_expert_weights(module)
    if weights is None or "forward" in vars(module) or weights.up.dtype not in _DTYPES:
        return None
    if not weights.up.is_contiguous() or not weights.down.is_contiguous():
        return None
    if not torch_waits(kernels.capability, weights):
        return None
    grouped = GroupedExperts(module, kernels)
    return grouped if _computes_the_same(module, grouped, width=weights.widths[0]) else None


def torch_waits(capability: tuple[int, int], weights: ExpertWeights) -> bool:
    """Whether torch's `grouped_mm` reads sizes of groups on the host, or refuses the weights, on a GPU.

    So says the source of torch 2.11 to 2.13 (`_grouped_mm_cuda`, `_grouped_mm_validate_inputs`, `GroupMM.cu`). With one
    expert, transformers' count of the rows of each expert reads on the host too (`histc` of an empty range).
    """
    has_kernel = capability[0] in _FAST_MAJORS and weights.up.dtype is torch.bfloat16
    return not (has_kernel and weights.fill_rows and 1 < weights.num_experts < _MAX_GROUPS)


def _activation_of(module: Any, kernels: DeviceKernels) -> Activation | None:
    """Return the activation of a gate that multiplies the halves of its inputs. None: the gate is another one."""
    weight = module.down_proj
    gate_up = _random(weight, 3, 2 * weight.shape[1 if module.is_transposed else 2])
    gate, up = gate_up.chunk(2, dim=-1)
    with torch.inference_mode():
        expected = module._apply_gate(gate_up)
        for activation in ACTIVATIONS:
            if _is_close(kernels.gate_up(gate, up, activation), expected):
                return activation
    return None


def _computes_the_same(module: Any, grouped: GroupedExperts, *, width: int) -> bool:
    """Compare both on rows of which each goes to one or two experts, and some experts get none."""
    num_of_row = min(2, module.num_experts)
    x_NH = _random(module.down_proj, 5, width)
    ids_NK = torch.stack([torch.arange(5) * 3, torch.arange(5) * 3 + 1], dim=1)[:, :num_of_row] % module.num_experts
    ids_NK = ids_NK.to(x_NH.device)
    weights_NK = torch.linspace(0.2, 0.9, ids_NK.numel(), device=x_NH.device).view(ids_NK.shape).to(x_NH.dtype)
    with torch.inference_mode():
        return _is_close(grouped(x_NH, ids_NK, weights_NK), module.forward(x_NH, ids_NK, weights_NK))


def _random(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(like.dtype).to(like.device)


def _is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    difference: float = (found.float() - expected.float()).abs().max().item()
    return difference <= _TOLERANCE[found.dtype] * expected.float().abs().max().item()
