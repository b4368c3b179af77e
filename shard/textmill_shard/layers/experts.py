"""Modules of experts under transformers' decorator `use_experts_implementation`, and what torch asks of the weights."""

# E experts, O outputs, I inputs

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from textmill_shard.probing.expert_routes import is_experts

_ROW_BYTES = 16  # of which torch's `grouped_mm` wants the rows to be multiples
_LOOP = "eager"  # transformers' word for one product after the other


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """The weights of a module of experts: of the gate and up part, or the up part alone, and of the down part.

    Both are `[E, O, I]`, or with `has_inputs_first` `[E, I, O]`, and of one type.
    """

    up: torch.Tensor
    down: torch.Tensor
    has_inputs_first: bool

    @property
    def num_experts(self) -> int:
        return self.up.shape[0]

    @property
    def widths(self) -> tuple[int, int]:
        """The inputs of both products."""
        dim = 1 if self.has_inputs_first else 2
        return self.up.shape[dim], self.down.shape[dim]

    @property
    def fill_rows(self) -> bool:
        """Whether all rows have the width that torch's product of groups asks for (`_grouped_mm_validate_inputs`)."""
        return all(width * self.up.itemsize % _ROW_BYTES == 0 for width in self.widths)


def find_expert_weights(module: nn.Module) -> ExpertWeights | None:
    """Return the weights of a module of experts. None: the module is something else."""
    if not is_experts(module):
        return None
    experts: Any = module
    up, down = getattr(experts, "gate_up_proj" if experts.has_gate else "up_proj", None), experts.down_proj
    if not torch.is_tensor(up) or not torch.is_tensor(down) or up.dtype != down.dtype:
        return None
    if any(weights.dim() != 3 or weights.shape[0] != experts.num_experts for weights in (up, down)):
        return None
    return ExpertWeights(up, down, has_inputs_first=experts.is_transposed)


def loop_where_torch_refuses(model: Any) -> None:
    """Let transformers compute a model's experts one by one where torch's product of groups refuses the rows.

    An expert may be that narrow by itself, or because a rank has a part of each expert.
    """
    found = [weights for module in model.modules() if (weights := find_expert_weights(module)) is not None]
    if not all(weights.fill_rows for weights in found):
        model.set_experts_implementation(_LOOP)
