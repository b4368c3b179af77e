"""The key and value tensors of one rank. The router alone knows which request owns which block."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from textmill_shard.model.kv_scales import KvScales

UNBOUNDED_TOKENS = 1 << 16  # longest request of a model whose positions have no end and take no memory


@dataclass(frozen=True, slots=True)
class LayerKvSpec:
    """The sizes that one attention layer stores per token on this rank."""

    num_local_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def elements_per_token(self) -> int:
        return self.num_local_kv_heads * (self.key_dim + self.value_dim)


class KvPool:
    """Keys and values per layer, each `[num_blocks + 1, block_size, local kv heads, dim]`.

    The last block is the scratch block, whose contents nobody reads. `scales` has an entry per layer where the numbers
    have 8 bits, else None entries.
    """

    def __init__(
        self,
        *,
        specs: Sequence[LayerKvSpec],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        scales: Sequence[KvScales] | None = None,
    ) -> None:
        self.scales: tuple[KvScales | None, ...] = (None,) * len(specs) if scales is None else tuple(scales)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.device = device
        self.keys = [
            torch.empty(num_blocks + 1, block_size, s.num_local_kv_heads, s.key_dim, dtype=dtype, device=device)
            for s in specs
        ]
        self.values = [
            torch.empty(num_blocks + 1, block_size, s.num_local_kv_heads, s.value_dim, dtype=dtype, device=device)
            for s in specs
        ]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


def kv_bytes_per_block(specs: Sequence[LayerKvSpec], *, block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes that one block takes over all layers."""
    return sum(spec.elements_per_token for spec in specs) * block_size * dtype.itemsize
