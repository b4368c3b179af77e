"""Lists the linear layers of a model that has its weights, before other layers take their places."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from textmill_shard.distributed.index_plan import IndexPlan
from textmill_shard.model.adapter import LinearPart


def find_linears(model: nn.Module, plan: IndexPlan) -> dict[str, LinearPart]:
    """Return the linear layers by their paths, with the inputs and outputs that the plan gives to this rank."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            num_inputs, num_outputs = _sizes(module)
            cut = plan.cut_of_parameter.get(f"{path}.weight")
            whole = {0: slice(0, num_outputs), 1: slice(0, num_inputs)}
            if cut is not None:
                whole[cut.dim] = slice(cut.indices.start, cut.indices.stop)
            found[path] = LinearPart(
                in_features=num_inputs, out_features=num_outputs, inputs=whole[1], outputs=whole[0]
            )
    return found


def _sizes(layer: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of the whole layer. GPT-2's `Conv1D` holds the weight as `[I, O]`."""
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
