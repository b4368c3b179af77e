"""The layers whose weights are divided among the ranks. Each takes the place of a plain layer of transformers."""

# ... any leading dimensions, I inputs, O outputs, V vocabulary

import torch
from torch import nn
from torch.nn import functional

from textmill_shard.distributed.index_plan import IndexRange, Role
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
    """Holds some of the input columns. The sums of the ranks are added up, and then the bias is added once."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, parallel: TensorParallel) -> None:
        super().__init__()
        self.local = ColumnParallelLinear(weight_OI, None)
        self.bias = bias_O
        self._parallel = parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self._parallel.all_reduce(self.local(x))
        return out if self.bias is None else out + self.bias


class VocabularyParallelHead(nn.Module):
    """Holds the rows of some token ids and returns the logits of all ids on every rank."""

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
        self._parallel = parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._parallel.all_gather(self.local(x), self.sizes)


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
    """Return the divided layer for a plain layer, with the plain layer's parameters, whose weights have been read."""
    if isinstance(module, nn.Embedding):
        return VocabularyParallelEmbedding(module.weight, parallel, indices)
    assert isinstance(module, nn.Linear), module
    if role is Role.COLUMN:
        return ColumnParallelLinear(module.weight, module.bias)
    if role is Role.ROW:
        return RowParallelLinear(module.weight, module.bias, parallel)
    return VocabularyParallelHead(module.weight, module.bias, parallel, vocabulary_sizes)
