"""Lists the linear layers of a model that has its weights, before other layers take their places."""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from textmill_shard.distributed.index_plan import Cut, IndexPlan
from textmill_shard.model.adapter import Indices, LinearPart


def find_linears(model: nn.Module, plan: IndexPlan) -> dict[str, LinearPart]:
    """Return the linear layers by their paths, with the inputs and outputs that the plan gives to this rank."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            num_inputs, num_outputs = _sizes(module)
            cut = plan.cut_of_parameter.get(f"{path}.weight")
            whole: dict[int, Indices] = {0: slice(0, num_outputs), 1: slice(0, num_inputs)}
            if cut is not None:
                whole[cut.dim if isinstance(module, nn.Linear) else 1 - cut.dim] = _indices(cut)
            found[path] = LinearPart(
                in_features=num_inputs, out_features=num_outputs, inputs=whole[1], outputs=whole[0]
            )
    return found


def _indices(cut: Cut) -> Indices:
    if len(cut.runs) == 1:
        return slice(cut.runs[0].start, cut.runs[0].stop)
    return torch.cat([torch.arange(run.start, run.stop) for run in cut.runs])


def _sizes(layer: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of the whole layer. GPT-2's `Conv1D` holds the weight as `[I, O]`."""
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
