"""Adds the products of LoRA adapters to the linear layers of transformers' code, in the rows that have an adapter.

The layers are left alone: during a step with adapter rows each adapted layer's `forward` is replaced, so that any other
step runs as if there were no adapters. A layer that is divided by inputs gets its addition before the ranks add up.
"""

# T rows of a call, n rows of one adapter, r rank, I inputs, O outputs (of this rank)

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from textmill_shard.layers.adapter_rows import AdapterRows
from textmill_shard.layers.device_adapter_rows import DeviceAdapterRows
from textmill_shard.layers.low_rank_tables import LowRankTables
from textmill_shard.layers.parallel_layers import RowParallelLinear, VocabularyParallelHead
from textmill_shard.model.adapter import AdapterWeights, LowRank, PreparedAdapter
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.native.kernels import DTYPES, Kernels
from textmill_shard.native.low_rank import NOTHING, LowRankPart, LowRankProduct, PackedLowRank
from textmill_shard.triton_kernels.interface import DeviceKernels, LowRankTable

PassRows: TypeAlias = AdapterRows | DeviceAdapterRows
_Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Form:
    """The adapter of one layer: packed where the kernels take the layer, else as matrices."""

    low: LowRank | None
    packed: PackedLowRank | None

    @property
    def num_bytes(self) -> int:
        matrices = 0 if self.low is None else self.low.a_rI.nbytes + self.low.b_Or.nbytes
        return matrices + (0 if self.packed is None else self.packed.num_bytes)


class AdaptedModules:
    """Holds the adapters of a model that runs by transformers' code. Only the step loop calls `put` and `running`."""

    def __init__(
        self,
        model: nn.Module,
        paths: Sequence[str],
        *,
        device: torch.device,
        kernels: Kernels | None = None,
        device_kernels: DeviceKernels | None = None,
    ) -> None:
        self._layers = {path: _product_of(model.get_submodule(path)) for path in paths}
        self._device = device
        self._kernels = kernels
        self._device_kernels = device_kernels
        self._tables = None if device_kernels is None else LowRankTables(paths, device)
        self._adapters: dict[int, Mapping[str, _Form]] = {}
        self._max_ranks: dict[int, int] = {}  # of the adapters on a GPU, by place
        self._any_rank = 0  # the largest rank of adapters that the host does not know; 0: the host must know them

    def prepare(self, weights: AdapterWeights) -> PreparedAdapter:
        """Bring the weights into the form of the steps. A thread beside the step loop may call this."""
        form = {path: self._form(low) for path, low in weights.modules.items()}
        if self._device_kernels is not None:
            self._compile(self._device_kernels, weights)
        num_bytes = sum(one.num_bytes for one in form.values())
        return PreparedAdapter.of(weights, form=form, num_bytes=num_bytes)

    def hold_any(self, max_rank: int) -> bool:
        """Let passes have adapters that the host does not know. Returns False without tables on a GPU."""
        if self._tables is None:
            return False
        self._any_rank = max_rank
        self._tables.reserve()
        return True

    @property
    def address_version(self) -> int:
        """A number that changes when the tables of the adapters move."""
        return 0 if self._tables is None else self._tables.version

    def put(self, place: int, adapter: PreparedAdapter) -> None:
        """Let steps find the adapter under this place."""
        self._adapters[place] = adapter.form
        if self._tables is not None:
            self._tables.put(place, {path: form.low for path, form in adapter.form.items()})
            self._max_ranks[place] = adapter.max_rank

    def remove(self, place: int) -> None:
        """Free a place."""
        del self._adapters[place]
        if self._tables is not None:
            self._tables.remove(place)

    def rows_of_tokens(self, batch: ForwardBatch) -> PassRows | None:
        """Return the rows of a pass over all tokens of a batch as one text. None: no row has an adapter."""
        kind = AdapterRows if self._device_kernels is None else DeviceAdapterRows
        return kind.of_tokens(batch)

    def rows_of_sequences(self, batch: ForwardBatch) -> PassRows | None:
        """Return the rows of a pass over sequences of equally many tokens. None: no row has an adapter."""
        kind = AdapterRows if self._device_kernels is None else DeviceAdapterRows
        return kind.of_sequences(batch)

    def rows_of_one(self, place: int) -> PassRows:
        """Return the rows of a pass in which every row has one adapter."""
        kind = AdapterRows if self._device_kernels is None else DeviceAdapterRows
        return kind.of_one(place, self._device)

    @contextmanager
    def running(self, rows: PassRows) -> Iterator[None]:
        """Within this context the layers compute with the adapters of `rows`, which this object has made."""
        adapters = [self._adapters[place] for place in rows.places]
        replaced: list[tuple[nn.Module, Any]] = []
        # Adapters that the host does not know may change any layer.
        paths = {path for adapter in adapters for path in adapter} if rows.places else self._layers.keys()
        try:
            for path in paths:
                layer = self._layers[path]
                replaced.append((layer, layer.__dict__.get("forward")))
                forms = [each.get(path) for each in adapters]
                layer.__dict__["forward"] = self._adapted(path, layer.forward, rows, forms)
            yield
        finally:
            for layer, own in replaced:
                if own is None:
                    del layer.__dict__["forward"]
                else:
                    layer.__dict__["forward"] = own

    def _compile(self, kernels: DeviceKernels, weights: AdapterWeights) -> None:
        """Let the kernels be compiled for the sizes of an adapter, which takes seconds, before a step needs them."""
        sizes = {(low.a_rI.shape[1], low.b_Or.shape[0], low.a_rI.dtype) for low in weights.modules.values()}
        nothing = LowRankTables.empty(self._device)
        for num_inputs, num_outputs, dtype in sorted(sizes, key=str):
            for is_decode in (True, False):
                kernels.add_low_rank(
                    torch.zeros(1, num_outputs, dtype=dtype, device=self._device),
                    torch.zeros(1, num_inputs, dtype=dtype, device=self._device),
                    nothing,
                    torch.zeros(1, dtype=torch.int32, device=self._device),
                    max_rank=weights.max_rank,
                    is_decode=is_decode,
                )

    def _form(self, low: LowRank) -> _Form:
        num_inputs = low.a_rI.shape[1]
        if self._kernels is not None and low.a_rI.dtype in DTYPES and num_inputs * low.a_rI.dtype.itemsize % 4 == 0:
            part = LowRankPart(low.b_Or.shape[0], low.a_rI, low.b_Or, low.scale)
            return _Form(low=None, packed=PackedLowRank([part]))
        if self._tables is not None:
            return _Form(low=LowRankTables.to_device(low, self._device), packed=None)
        on_device = LowRank(a_rI=low.a_rI.to(self._device), b_Or=low.b_Or.to(self._device), scale=low.scale)
        return _Form(low=on_device, packed=None)

    def _adapted(self, path: str, forward: _Forward, rows: PassRows, forms: Sequence[_Form | None]) -> _Forward:
        """Return the forward of a layer for one step. `forms` is parallel to the places of `rows`."""
        if isinstance(rows, DeviceAdapterRows):
            assert self._device_kernels is not None
            assert self._tables is not None
            max_rank = max((self._max_ranks[place] for place in rows.places), default=self._any_rank)
            assert max_rank, "hold_any comes before a pass with adapters that the host does not know"
            return _DeviceForward(forward, rows, self._tables.of(path), max_rank, self._device_kernels)
        if self._kernels is not None and all(form is None or form.packed is not None for form in forms):
            products = [NOTHING if form is None or form.packed is None else form.packed.product for form in forms]
            return _PackedForward(forward, rows, products, self._kernels)
        return _PlainForward(forward, rows, [None if form is None else form.low for form in forms])


@dataclass(frozen=True, slots=True)
class _PackedForward:
    """The forward of a layer whose adapters the kernels add."""

    forward: _Forward
    rows: AdapterRows
    products: Sequence[LowRankProduct]
    kernels: Kernels

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = self.forward(x)
        x_TI = x.reshape(-1, x.shape[-1])
        adapter_of_row_T = self.rows.index_of(x_TI.shape[0])
        self.kernels.add_low_rank(out.view(-1, out.shape[-1]), x_TI, self.products, adapter_of_row_T)
        return out


@dataclass(frozen=True, slots=True)
class _DeviceForward:
    """The forward of a layer whose adapters the kernels of a GPU add."""

    forward: _Forward
    rows: DeviceAdapterRows
    table: LowRankTable
    max_rank: int
    kernels: DeviceKernels

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = self.forward(x)
        x_TI = x.reshape(-1, x.shape[-1])
        self.kernels.add_low_rank(
            out.view(-1, out.shape[-1]),
            x_TI,
            self.table,
            self.rows.places_of(x_TI.shape[0]),
            max_rank=self.max_rank,
            is_decode=self.rows.is_decode,
        )
        return out


@dataclass(frozen=True, slots=True)
class _PlainForward:
    """The forward of a layer whose adapters torch adds. This is the reference of the kernels."""

    forward: _Forward
    rows: AdapterRows
    low_ranks: Sequence[LowRank | None]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = self.forward(x)
        x_TI = x.reshape(-1, x.shape[-1])
        out_TO = out.view(-1, out.shape[-1])
        for low, index_n in zip(self.low_ranks, self.rows.rows_of_places(x_TI.shape[0]), strict=True):
            if low is not None and len(index_n):
                _add(out_TO, x_TI, low, index_n)
        return out


def _add(out_TO: torch.Tensor, x_TI: torch.Tensor, low: LowRank, index_n: torch.Tensor) -> None:
    """Add the adapter's product to its rows, in place. Sums are float32, and z is rounded to the dtype of the model."""
    z_nr = (x_TI[index_n].float() @ low.a_rI.float().T * low.scale).to(low.a_rI.dtype)
    product_nO = z_nr.float() @ low.b_Or.float().T
    out_TO[index_n] = (out_TO[index_n] + product_nO).to(out_TO.dtype)


def _product_of(layer: nn.Module) -> nn.Module:
    """Return the part of a layer that computes the product alone, before ranks exchange and biases are added."""
    return layer.local if isinstance(layer, RowParallelLinear | VocabularyParallelHead) else layer
