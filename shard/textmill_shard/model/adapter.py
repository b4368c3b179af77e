"""A LoRA adapter as this rank holds one: for each adapted linear layer two small matrices and a scale.

The layer's output `x W^T` becomes `x W^T + scale (x A^T) B^T` in the rows of the adapter's requests.
"""

# r rank of a module, I inputs and O outputs of a linear layer (of the whole model, or of this rank's part)

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

Indices: TypeAlias = slice | torch.Tensor  # of a dimension: one run, or int64 `[n]`
NO_ADAPTER = 0  # the place that stands for the base model in `ForwardBatch.adapters_R`


class AdapterRefused(Exception):
    """The folder holds no adapter that this model can take. The text says what was found, and what to change."""


class AdapterTooLarge(AdapterRefused):
    """The adapter, or a file of its folder, is larger than allowed. The text has both numbers."""


@dataclass(frozen=True, slots=True)
class LinearPart:
    """A linear layer that an adapter can change, and the part of the layer that this rank holds."""

    in_features: int  # of the whole layer
    out_features: int
    inputs: Indices  # of this rank
    outputs: Indices

    @property
    def local_sizes(self) -> tuple[int, int]:
        """The numbers of inputs and outputs that this rank holds."""
        return _count(self.inputs, self.in_features), _count(self.outputs, self.out_features)


@dataclass(frozen=True, slots=True)
class AdapterTargets:
    """The linear layers of the model that an adapter can change, and other names under which files know them."""

    linears: Mapping[str, LinearPart]  # by the module's path in the model
    module_names: frozenset[str]  # paths of all modules of the model
    renamings: tuple[tuple[tuple[str, str], ...], ...] = ()  # each: patterns with replacements, applied in order
    dtype: torch.dtype = torch.float32
    has_tied_head: bool = False


@dataclass(frozen=True, slots=True)
class LowRank:
    """The adapter of one linear layer, in the dtype of the model."""

    a_rI: torch.Tensor  # the inputs of this rank
    b_Or: torch.Tensor  # the outputs of this rank
    scale: float

    @property
    def rank(self) -> int:
        """The inner width r."""
        return self.a_rI.shape[0]


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """What an adapter's folder says, cut to this rank. The digest is equal on all ranks."""

    digest: bytes  # 16 bytes
    modules: Mapping[str, LowRank]  # by the module's path in the model
    max_rank: int

    @property
    def target_names(self) -> tuple[str, ...]:
        """The last parts of the modules' names, sorted."""
        return tuple(sorted({name.rpartition(".")[2] for name in self.modules}))


def _count(indices: Indices, size: int) -> int:
    return len(range(size)[indices]) if isinstance(indices, slice) else len(indices)


def random_adapter(targets: AdapterTargets, *, rank: int) -> AdapterWeights:
    """Return an adapter of random numbers for all layers, for a trial. The outputs change by about a tenth."""
    random = torch.Generator().manual_seed(rank)
    modules = {}
    for path, part in targets.linears.items():
        num_inputs, num_outputs = part.local_sizes
        a_rI = torch.randn(rank, num_inputs, generator=random).to(targets.dtype)
        b_Or = torch.randn(num_outputs, rank, generator=random).to(targets.dtype)
        modules[path] = LowRank(a_rI, b_Or, scale=0.1 / (num_inputs * rank) ** 0.5)
    return AdapterWeights(digest=bytes(16), modules=modules, max_rank=rank)


@dataclass(frozen=True, slots=True)
class PreparedAdapter:
    """An adapter in the form in which a step reads the weights."""

    digest: bytes  # of the weights, 16 bytes
    max_rank: int
    num_modules: int
    target_names: tuple[str, ...]
    num_bytes: int  # memory that the form takes
    form: Any  # known to the `AdapterHost` that has made it

    @staticmethod
    def of(weights: AdapterWeights, *, form: Any, num_bytes: int) -> "PreparedAdapter":
        """Return the prepared form of weights, with the facts of the weights."""
        return PreparedAdapter(
            digest=weights.digest,
            max_rank=weights.max_rank,
            num_modules=len(weights.modules),
            target_names=weights.target_names,
            num_bytes=num_bytes,
            form=form,
        )


class AdapterHost(Protocol):
    """Computes with adapters. A place is a number >= 1 under which a batch names a loaded adapter."""

    def prepare(self, weights: AdapterWeights) -> PreparedAdapter:
        """Bring weights into the form of the steps. A thread beside the step loop may call this."""
        ...

    def hold_any(self, max_rank: int) -> bool:
        """Let batches have adapters that the host does not know, of at most this rank, as a graph of steps has.

        Returns False where the host must know the adapters of a batch.
        """
        ...

    @property
    def address_version(self) -> int:
        """A number that changes when batches find adapters at other addresses, which a graph does not know."""
        ...

    def put(self, place: int, adapter: PreparedAdapter) -> None:
        """Let steps find the adapter under this place. The step loop calls this between two steps."""
        ...

    def remove(self, place: int) -> None:
        """Free a place. The step loop calls this between two steps."""
        ...
