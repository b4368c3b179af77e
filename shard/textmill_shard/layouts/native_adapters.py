"""The adapters of a model that the native decoder runs: packed products per layer, and the arrays that a step needs."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from textmill_shard.model.adapter import NO_ADAPTER, AdapterWeights, PreparedAdapter
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.native.kernels import DecoderStep
from textmill_shard.native.low_rank import LowRankPart, LowRankProduct, PackedLowRank, pack_together, product_pointers

# The products of a layer, in the order of decoder.h, and the linear layers that make up each of them.
_PRODUCTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
LAYER_LINEARS = tuple(name for names in _PRODUCTS for name in names)  # paths in a layer
_GATE_UP = 2
_HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class _Packed:
    """The products of one adapter: of each layer, and last of the head."""

    products: Any  # array of LowRankProduct
    most_ranks: int  # of a product
    held: Sequence[PackedLowRank]  # the memory that the products point to


@dataclass(frozen=True, slots=True)
class StepAdapters:
    """The adapters of the rows of one step."""

    pointers: Any
    most_ranks: int  # of a product of one of them
    adapter_of_token_T: npt.NDArray[np.int32]
    held: Sequence[_Packed] = field(default_factory=tuple)

    def fill(self, step: DecoderStep) -> None:
        """Let the step read these arrays. They must be kept alive during the call."""
        step.num_adapters = len(self.pointers)
        step.most_ranks = self.most_ranks
        step.adapters = ctypes.addressof(self.pointers)
        step.adapter_of_token = self.adapter_of_token_T.ctypes.data


class NativeAdapters:
    """Packs adapters, and finds them by their places."""

    def __init__(
        self,
        *,
        num_layers: int,
        outputs_of_layer: Mapping[str, int],
        vocab_size: int,
        allocate: Callable[[int], torch.Tensor],
        layers_path: str = "model.layers",
    ) -> None:
        """`outputs_of_layer` has the widths of a layer's linear layers, by their paths in the layer.

        `allocate` gives memory for a number of bytes, uint8 and aligned to 64 bytes, and is called by any thread.
        """
        self._allocate = allocate
        self._layers_path = layers_path
        self._num_layers = num_layers
        self._outputs_of_layer = outputs_of_layer
        self._vocab_size = vocab_size
        self._adapters: dict[int, _Packed] = {}
        self._last: tuple[tuple[bytes, bytes, int], StepAdapters | None] | None = None  # of a step, by its rows

    def prepare(self, weights: AdapterWeights) -> PreparedAdapter:
        """Pack an adapter. A thread beside the step loop may call this."""
        packed: dict[int, PackedLowRank] = {}  # by the product's place in the list of a step
        for layer in range(self._num_layers):
            for number, names in enumerate(_PRODUCTS):
                parts = [
                    _part(weights, f"{self._layers_path}.{layer}.{name}", self._outputs_of_layer[name])
                    for name in names
                ]
                if any(part.a_rI is not None for part in parts):
                    packed[layer * len(_PRODUCTS) + number] = PackedLowRank(parts, is_gate=number == _GATE_UP)
        head = _part(weights, _HEAD, self._vocab_size)
        if head.a_rI is not None:
            packed[self._num_layers * len(_PRODUCTS)] = PackedLowRank([head])
        pack_together(list(packed.values()), self._allocate)
        products = (LowRankProduct * (self._num_layers * len(_PRODUCTS) + 1))()
        for place, one in packed.items():
            products[place] = one.product
        num_bytes = ctypes.sizeof(products) + sum(one.num_bytes for one in packed.values())
        return PreparedAdapter.of(
            weights,
            form=_Packed(
                products=products,
                most_ranks=max(product.num_ranks for product in products),
                held=tuple(packed.values()),
            ),
            num_bytes=num_bytes,
        )

    def put(self, place: int, adapter: PreparedAdapter) -> None:
        """Let steps find the adapter under this place."""
        self._adapters[place] = adapter.form
        self._last = None

    def remove(self, place: int) -> None:
        """Free a place."""
        del self._adapters[place]
        self._last = None

    def of_step(self, batch: ForwardBatch) -> StepAdapters | None:
        """Return the adapters of a batch. None: no row has one."""
        assert batch.adapters_R is not None
        places_R, starts, num_tokens = batch.adapters_R.numpy(), batch.query_starts.numpy(), batch.input_ids_T.shape[0]
        rows = (places_R.tobytes(), starts.tobytes(), num_tokens)
        if self._last is None or self._last[0] != rows:  # the rows of a step are mostly those of the step before
            self._last = rows, self._of_rows(places_R, starts, num_tokens)
        return self._last[1]

    def _of_rows(
        self, places_R: npt.NDArray[np.int32], starts: npt.NDArray[np.int32], num_tokens: int
    ) -> StepAdapters | None:
        places = [place for place in np.unique(places_R).tolist() if place != NO_ADAPTER]
        if not places:
            return None
        packed = [self._adapters[place] for place in places]
        index_R = np.searchsorted(places, places_R).astype(np.int32)
        index_R[places_R == NO_ADAPTER] = -1
        adapter_of_token_T = np.full(num_tokens, -1, dtype=np.int32)
        of_rows = np.repeat(index_R, np.diff(starts))
        adapter_of_token_T[: len(of_rows)] = of_rows
        pointers = product_pointers([one.products for one in packed])
        return StepAdapters(pointers, max(one.most_ranks for one in packed), adapter_of_token_T, packed)

    def head_of(self, place: int) -> LowRankProduct | None:
        """Return the product of the head, or None where the adapter leaves the head alone."""
        product: LowRankProduct = self._adapters[place].products[-1]
        return product if product.num_ranks else None


def _part(weights: AdapterWeights, path: str, num_outputs: int) -> LowRankPart:
    low = weights.modules.get(path)
    return LowRankPart(num_outputs) if low is None else LowRankPart(num_outputs, low.a_rI, low.b_Or, low.scale)
