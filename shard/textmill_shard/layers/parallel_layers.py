"""The layers whose weights are divided among the ranks. Each takes the place of a plain layer of transformers."""

# ... any leading dimensions, I inputs, O outputs, V vocabulary

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from textmill_shard.distributed.division_rules import Role
from textmill_shard.distributed.index_ranges import IndexRange
from textmill_shard.distributed.parallel import TensorParallel


class ColumnParallelLinear(nn.Module):
    """Holds some of the output rows and returns some of the outputs."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = weight_OI
        self.bias = bias_O
        self.out_features, self.in_features = weight_OI.shape  # stay when the weight has been packed and emptied

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """Holds some of the input columns. The ranks add their products up, and the product of rank 0 has the bias."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, parallel: TensorParallel) -> None:
        super().__init__()
        self.local: nn.Module = ColumnParallelLinear(weight_OI, None if parallel.rank else bias_O)
        self.parallel = parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parallel.all_reduce(self.local(x))


class VocabularyParallelHead(nn.Module):
    """Holds the rows of some token ids and returns the logits of all ids on every rank.

    Once `gives_part` is set, the layer returns the logits of its own ids alone, which somebody else then joins.
    """

    def __init__(
        self,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        parallel: TensorParallel,
        sizes: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.local = ColumnParallelLinear(weight_OI, bias_O)
        self.sizes = sizes  # ids of each rank
        self.gives_part = False
        self._parallel = parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = self.local(x)
        return part if self.gives_part else self._parallel.all_gather(part, self.sizes)


class VocabularyParallelEmbedding(nn.Module):
    """Holds the rows of some token ids. The rows of other ids come from the other ranks."""

    def __init__(self, weight_VI: torch.Tensor, parallel: TensorParallel, indices: IndexRange) -> None:
        super().__init__()
        self.weight = weight_VI
        self.indices = indices  # the ids of this rank
        self._parallel = parallel

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        is_elsewhere = (ids < self.indices.start) | (ids >= self.indices.stop)
        rows = functional.embedding((ids - self.indices.start).masked_fill(is_elsewhere, 0), self.weight)
        return self._parallel.all_reduce(rows.masked_fill(is_elsewhere.unsqueeze(-1), 0.0))


def divide_layer(
    module: nn.Module, *, role: Role, indices: IndexRange, parallel: TensorParallel, vocabulary_sizes: tuple[int, ...]
) -> nn.Module:
    """Return the divided layer for a plain layer, with the plain layer's parameters, whose weights have been read.

    `indices` are the first run of the indices of this rank, which is the only run of a vocabulary.
    """
    if isinstance(module, nn.Embedding):
        return VocabularyParallelEmbedding(module.weight, parallel, indices)
    assert isinstance(module, nn.Linear | Conv1D), module
    weight_OI = module.weight
    if isinstance(module, Conv1D):  # GPT-2's layer holds the weight as `[I, O]`
        weight_OI = nn.Parameter(weight_OI.detach().T.contiguous(), requires_grad=False)
    if role in (Role.COLUMN, Role.ROW_PART):
        return ColumnParallelLinear(weight_OI, module.bias)
    if role is Role.ROW:
        return RowParallelLinear(weight_OI, module.bias, parallel)
    return VocabularyParallelHead(weight_OI, module.bias, parallel, vocabulary_sizes)


def let_head_give_part(model: nn.Module) -> tuple[int, ...] | None:
    """Let a divided head return its own part, and return the number of ids of each rank. None: no head is divided."""
    sizes = None
    for module in model.modules():
        if isinstance(module, VocabularyParallelHead):
            module.gives_part = True
            sizes = module.sizes
    return sizes


def add_up_outputs(module: nn.Module, parallel: TensorParallel) -> None:
    """Let the ranks add up what a module returns, or the first of several tensors that the module returns."""

    def add(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (parallel.all_reduce(output[0]), *output[1:])
        return parallel.all_reduce(output)

    module.register_forward_hook(add)


class LocalNumbers:
    """A config of which this rank sees other numbers in some places. Everything else is the config's own."""

    def __init__(self, config: Any) -> None:
        self.__dict__["_config"] = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_config"], name)
