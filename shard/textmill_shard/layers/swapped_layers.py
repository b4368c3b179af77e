"""Layers that take the places of transformers' layers and compute by the native kernels."""

# T rows (all leading dims), O outputs, I inputs

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.layers.parallel_layers import ColumnParallelLinear, RowParallelLinear
from textmill_shard.native.kernels import Kernels, PackedWeight, pad_bias
from textmill_shard.native.ranks import RankRoom

LINEARS = (nn.Linear, ColumnParallelLinear, Conv1D)  # kinds of layers that the layers below can replace


def weight_of(linear: Any) -> torch.Tensor:
    """Return the weight `[O, I]` of one of `LINEARS`. GPT-2's `Conv1D` holds the weight as `[I, O]`."""
    weight: torch.Tensor = linear.weight.detach()
    return weight.T if isinstance(linear, Conv1D) else weight


class PackedLinear(nn.Module):
    """A linear layer with a packed weight."""

    def __init__(self, linear: nn.Module, kernels: Kernels, *, keeps_original: bool) -> None:
        """Pack the weight of a layer, and empty the layer unless `keeps_original` says that others need its weight."""
        super().__init__()
        self.out_features, self.in_features = weight_of(linear).shape
        self._product = _Product([linear], kernels)
        self.register_buffer("panels", self._product.weight.panels, persistent=False)
        self.register_buffer("padded_bias", self._product.bias, persistent=False)
        if not keeps_original:
            empty_layer(linear)
        # Modelling code asks this empty tensor for dtype and device.
        self.weight = torch.empty(0, dtype=self._product.weight.dtype)
        self.bias: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x)

    def sum(self, x: torch.Tensor, room: RankRoom) -> torch.Tensor:
        """Return the sum over the ranks of what `forward` gives on each of them."""
        return self._product.sum(x, room)


class PackedRowLinear(RowParallelLinear):
    """A layer divided by inputs whose product and exchange with the other ranks are one native call."""

    def __init__(self, local: PackedLinear, parallel: TensorParallel, room: RankRoom) -> None:
        nn.Module.__init__(self)
        self.local = local
        self.parallel = parallel
        self._sum, self._room = local.sum, room

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "forward" in self.local.__dict__:  # an adapter has its product added before the ranks add up
            return super().forward(x)
        return self._sum(x, self._room)


class FusedLinears:
    """Linear layers of one input as one product. The layer that is called first computes the product for all."""

    def __init__(self, linears: Sequence[nn.Module], kernels: Kernels) -> None:
        """Pack the weights behind one another and empty the layers."""
        self.sizes = [weight_of(linear).shape[0] for linear in linears]
        self.product = _Product(linears, kernels)
        for linear in linears:
            empty_layer(linear)
        self._x: torch.Tensor | None = None
        self._outs: list[torch.Tensor | None] = []

    def take(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Return the output of one layer. Any order of calls is correct, and calls with one shared input are fast."""
        out = self._outs[index] if x is self._x else None
        if out is None:
            self._x = x
            self._outs = list(torch.split(self.product(x), self.sizes, dim=-1))
            out = self._outs[index]
        assert out is not None
        self._outs[index] = None
        if all(other is None for other in self._outs):
            self._x = None
        return out


class FusedLinear(nn.Module):
    """One of several linear layers that share their input."""

    def __init__(self, fused: FusedLinears, index: int, *, in_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, fused.sizes[index]
        self._fused, self._index = fused, index
        self.register_buffer("panels", fused.product.weight.panels, persistent=False)
        self.register_buffer("padded_bias", fused.product.bias, persistent=False)
        self.weight = torch.empty(0, dtype=fused.product.weight.dtype)
        self.bias: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._fused.take(x, self._index)


class NativeRmsNorm(nn.Module):
    """x / sqrt(mean of squares + epsilon) * weight, rounded once at the end."""

    factor: torch.Tensor

    def __init__(self, factor_I: torch.Tensor, epsilon: float, kernels: Kernels, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("factor", factor_I.detach().float().contiguous(), persistent=False)
        self.variance_epsilon = epsilon
        self.weight = torch.empty(0, dtype=dtype)  # modelling code asks this empty tensor for its dtype
        self._kernels = kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._kernels.rms_norm(x.reshape(-1, x.shape[-1]), self.factor, self.variance_epsilon).view(x.shape)


class _Product:
    """The weights and biases of some linear layers, one behind the other."""

    def __init__(self, linears: Sequence[Any], kernels: Kernels) -> None:
        weights = [weight_of(linear) for linear in linears]
        self._kernels = kernels
        self.weight: PackedWeight = kernels.pack(weights[0] if len(weights) == 1 else torch.cat(weights))
        self.bias: torch.Tensor | None = None
        if any(linear.bias is not None for linear in linears):
            biases = [
                torch.zeros(weight_OI.shape[0]) if linear.bias is None else linear.bias.detach().float()
                for linear, weight_OI in zip(linears, weights, strict=True)
            ]
            self.bias = pad_bias(torch.cat(biases))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x_TI = x.reshape(-1, self.weight.inner)
        out_TO = self._kernels.linear(x_TI, self.weight, self.bias, is_narrow=True)
        return out_TO.view(*x.shape[:-1], self.weight.num_outputs)

    def sum(self, x: torch.Tensor, room: RankRoom) -> torch.Tensor:
        x_TI = x.reshape(-1, self.weight.inner)
        out_TO = self._kernels.linear_sum(x_TI, self.weight, self.bias, room)
        return out_TO.view(*x.shape[:-1], self.weight.num_outputs)


def empty_layer(layer: nn.Module) -> None:
    """Free the memory of the layer's parameters, because others may still hold the layer itself."""
    for parameter in layer.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype)
