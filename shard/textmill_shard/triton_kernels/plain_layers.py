"""The plain torch that the small kernels of layers must agree with. `attention/` has that of the other kernels."""

# ... any leading dims, I width; of adapters: T rows, I inputs, O outputs, r rank; of experts: N rows, P pairs of
# a row and an expert, E experts

import torch
from torch.nn import functional

from textmill_shard.model.adapter import NO_ADAPTER
from textmill_shard.triton_kernels.interface import Activation, ExpertOrder, LowRankTable


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


def add_low_rank_plainly(out_TO: torch.Tensor, x_TI: torch.Tensor, table: LowRankTable, places_T: torch.Tensor) -> None:
    """Add scale (x A^T) B^T in place (LoRA, Hu et al., 2021). Sums are float32, and the first product is rounded.

    Reads the places of the rows on the host.
    """
    for place in set(places_T.tolist()) - {NO_ADAPTER}:
        low = table.low_ranks.get(place)
        if low is None:
            continue
        index_n = (places_T == place).nonzero().squeeze(1)
        z_nr = (x_TI[index_n].float() @ low.a_rI.float().T * low.scale).to(x_TI.dtype)
        out_TO[index_n] = (out_TO[index_n] + z_nr.float() @ low.b_Or.float().T).to(out_TO.dtype)


def expert_product_plainly(
    x_NI: torch.Tensor,
    weights: torch.Tensor,
    biases_EO: torch.Tensor | None,
    order: ExpertOrder,
    *,
    has_inputs_first: bool,
) -> torch.Tensor:
    """Return x W^T + b of each pair with the W and b of its expert, `[P, O]`, rounded once.

    Reads on the host where the pairs of each expert end.
    """
    pairs_of_row = len(order.pairs_P) // len(x_NI)
    out_PO = x_NI.new_empty(len(order.pairs_P), weights.shape[2 if has_inputs_first else 1])
    start = 0
    for expert, end in enumerate(order.ends_E.tolist()):
        pairs_n = order.pairs_P[start:end]
        matrix_IO = weights[expert].float() if has_inputs_first else weights[expert].float().T
        product_nO = x_NI[pairs_n // pairs_of_row].float() @ matrix_IO
        if biases_EO is not None:
            product_nO = product_nO + biases_EO[expert].float()
        out_PO[pairs_n] = product_nO.to(x_NI.dtype)
        start = end
    return out_PO
