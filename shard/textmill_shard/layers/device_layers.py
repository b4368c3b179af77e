"""Layers of a GPU that take the places of transformers' layers: joined products of torch, and small kernels."""

# T rows (all leading dims), O outputs, I inputs

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from textmill_shard.layers.swapped_layers import empty_layer, weight_of
from textmill_shard.triton_kernels.interface import Activation, DeviceKernels


class JoinedLinears:
    """Linear layers of one input as one product. The layer that is called first computes the product for all."""

    def __init__(self, linears: Sequence[Any]) -> None:
        """Join the weights behind one another and empty the layers."""
        self.sizes = [weight_of(linear).shape[0] for linear in linears]
        self.weight, self.bias = join(linears)
        for linear in linears:
            empty_layer(linear)
        self._x: torch.Tensor | None = None
        self._outs: list[torch.Tensor | None] = []

    def take(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Return the output of one layer. Any order of calls is correct, and calls with one shared input are fast."""
        out = self._outs[index] if x is self._x else None
        if out is None:
            self._x = x
            self._outs = list(torch.split(functional.linear(x, self.weight, self.bias), self.sizes, dim=-1))
            out = self._outs[index]
        assert out is not None
        self._outs[index] = None
        if all(other is None for other in self._outs):
            self._x = None
        return out


class JoinedLinear(nn.Module):
    """One of several linear layers that share their input."""

    def __init__(self, joined: JoinedLinears, index: int) -> None:
        super().__init__()
        self.in_features, self.out_features = joined.weight.shape[1], joined.sizes[index]
        self._joined, self._index = joined, index
        self.register_buffer("joined_weight", joined.weight, persistent=False)
        self.register_buffer("joined_bias", joined.bias, persistent=False)
        # Modelling code asks this empty tensor for dtype and device.
        self.weight = torch.empty(0, dtype=joined.weight.dtype, device=joined.weight.device)
        self.bias: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._joined.take(x, self._index)


class DeviceRmsNorm(nn.Module):
    """x / sqrt(mean of squares + epsilon) * factor, rounded once at the end."""

    factor: torch.Tensor

    def __init__(self, factor_I: torch.Tensor, epsilon: float, kernels: DeviceKernels, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("factor", factor_I.detach().float().contiguous(), persistent=False)
        self.variance_epsilon = epsilon
        self.weight = torch.empty(0, dtype=dtype, device=factor_I.device)
        self.kernels = kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.kernels.rms_norm(x, self.factor, self.variance_epsilon)


class GatedMlp:
    """The forward of an MLP whose activation of one product is multiplied by another product of the same input.

    The parts stay layers of their own, so that adapters find them.
    """

    def __init__(
        self, gate: nn.Module, up: nn.Module, down: nn.Module, activation: Activation, kernels: DeviceKernels
    ) -> None:
        self._gate = gate
        self._up = up
        self._down = down
        self._activation: Activation = activation
        self._kernels = kernels

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self._gate(x), self._up(x)
        hidden = self._kernels.gate_up(gate.flatten(0, -2), up.flatten(0, -2), self._activation)
        out: torch.Tensor = self._down(hidden.view(gate.shape))
        return out


def join(linears: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the weights `[O, I]` and the biases `[O]` of linear layers, one behind the other."""
    weights = [weight_of(linear) for linear in linears]
    bias_O = None
    if any(linear.bias is not None for linear in linears):
        bias_O = torch.cat(
            [
                weight_OI.new_zeros(weight_OI.shape[0]) if linear.bias is None else linear.bias.detach()
                for linear, weight_OI in zip(linears, weights, strict=True)
            ]
        )
    return torch.cat(weights), bias_O


class PreNormLayer:
    """Stands in for the forward of a decoder layer: norm, attention, sum, norm, MLP, sum, each sum with the next norm.

    The norm behind the last sum belongs to the next layer, whose stand-in finds the result here. Where the next layer
    gets another tensor than this one returned, that layer norms by itself.
    """

    def __init__(
        self,
        *,
        first_norm: DeviceRmsNorm,
        attention: Callable[..., Any],
        second_norm: DeviceRmsNorm,
        mlp: Callable[..., torch.Tensor],
        hands_on: "HandedOn",
    ) -> None:
        self._first_norm = first_norm
        self._attention = attention
        self._second_norm = second_norm
        self._mlp = mlp
        self._hands_on = hands_on
        self.next_norm: DeviceRmsNorm | None = None  # of the next layer of this kind; None: the last sum is plain

    def __call__(self, hidden_states: torch.Tensor, **named: Any) -> torch.Tensor:
        normed = self._hands_on.take(hidden_states, self._first_norm)
        attended = self._attention(hidden_states=normed, **named)[0]
        total, normed = _add_norm(attended, hidden_states, self._second_norm)
        out = self._mlp(normed)
        if self.next_norm is None:
            return total + out
        total, normed = _add_norm(out, total, self.next_norm)
        self._hands_on.put(total, self.next_norm, normed)
        return total


class HandedOn:
    """The norm of a sum that one layer has computed for the next."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None
        self._norm: DeviceRmsNorm | None = None
        self._normed: torch.Tensor | None = None

    def put(self, total: torch.Tensor, norm: DeviceRmsNorm, normed: torch.Tensor) -> None:
        self._total, self._norm, self._normed = total, norm, normed

    def take(self, x: torch.Tensor, norm: DeviceRmsNorm) -> torch.Tensor:
        """Return the norm of `x`, computed here unless `put` had it."""
        normed = self._normed if x is self._total and norm is self._norm else None
        self._total = self._norm = self._normed = None
        return norm(x) if normed is None else normed


def _add_norm(x: torch.Tensor, residual: torch.Tensor, norm: DeviceRmsNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum, and its norm."""
    return norm.kernels.add_rms_norm(x, residual, norm.factor, norm.variance_epsilon)
