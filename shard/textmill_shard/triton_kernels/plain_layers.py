"""The plain torch that the small kernels of layers must agree with. `attention/` has that of the other kernels."""

# ... any leading dims, I width

import torch
from torch.nn import functional

from textmill_shard.triton_kernels.interface import Activation


def rms_norm_plainly(x: torch.Tensor, factor_I: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return x / sqrt(mean of squares + epsilon) * factor, rounded once (Zhang and Sennrich, 2019)."""
    x_float = x.float()
    scale = torch.rsqrt(x_float.square().mean(-1, keepdim=True) + epsilon)
    return (x_float * scale * factor_I).to(x.dtype)


def add_rms_norm_plainly(
    x: torch.Tensor, residual: torch.Tensor, factor_I: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rounded sum and the norm of the rounded sum."""
    total = x + residual
    return total, rms_norm_plainly(total, factor_I, epsilon)


def gate_up_plainly(gate_TI: torch.Tensor, up_TI: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Return activation(gate) * up, rounded once."""
    gate = gate_TI.float()
    if activation == "silu":
        active = functional.silu(gate)
    else:
        active = functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")
    return (active * up_TI.float()).to(gate_TI.dtype)
