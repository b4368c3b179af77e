"""Keys and values of the encoder's text, which a decoder attends to.

They lie per layer in the first places of each block table.
"""

# B sequences, E tokens of the longest text that an encoder read, K key/value heads, D key or value width

from typing import Any

import torch
from transformers import Cache, EncoderDecoderCache

from textmill_shard.model.kv_pool import KvPool


class CrossStore(Cache):  # type: ignore[misc]
    """Takes the keys and values of one encoder's text from the layers, and puts them into the pool."""

    def __init__(self, pool: KvPool, places_E: torch.Tensor) -> None:
        super().__init__(layers=[])
        self._pool = pool
        self._places_E = places_E

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values `[1, K, E, D]` and return them."""
        for pool, states in ((self._pool.keys, key_states), (self._pool.values, value_states)):
            places = pool[layer_idx].flatten(0, 1)
            places.index_copy_(0, self._places_E, states[0].transpose(0, 1).to(places.dtype))
        return key_states, value_states

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        return 0


class CrossView(Cache):  # type: ignore[misc]
    """Returns to each layer the keys and values of the sequences' encoder texts, padded on the right."""

    def __init__(
        self, pool: KvPool, block_tables_BC: torch.Tensor, encoder_lens_B: torch.Tensor, dtype: torch.dtype
    ) -> None:
        super().__init__(layers=[_CrossLayer(self, index) for index in range(len(pool.keys))])
        self._pool = pool
        self._dtype = dtype
        block_size = pool.block_size
        positions_E = torch.arange(int(encoder_lens_B.max()), device=block_tables_BC.device)
        is_text_BE = positions_E < encoder_lens_B.unsqueeze(1)
        blocks_BE = block_tables_BC.long()[:, positions_E // block_size]
        self._places_BE = blocks_BE * block_size + positions_E % block_size
        self._padding = (~is_text_BE).flatten().nonzero().squeeze(1)  # indices of the padding among the B * E places
        self.mask_BE = is_text_BE.long()  # 1 for each token of a text, 0 for padding

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        return self._places_BE.shape[1]

    def gather(self, pool_of_layer: torch.Tensor) -> torch.Tensor:
        """Return the keys or the values `[B, K, E, D]`, with zeros in the padding."""
        places = pool_of_layer.flatten(0, 1)
        gathered = places.index_select(0, self._places_BE.flatten())
        # The places behind a text may hold NaN, which a mask does not undo.
        gathered.index_fill_(0, self._padding, 0.0)
        return gathered.view(*self._places_BE.shape, *places.shape[1:]).transpose(1, 2).to(self._dtype)

    def keys(self, layer: int) -> torch.Tensor:
        return self.gather(self._pool.keys[layer])

    def values(self, layer: int) -> torch.Tensor:
        return self.gather(self._pool.values[layer])


class _CrossLayer:
    """A layer of the cache as transformers' attention reads a layer. Keys and values are gathered at each access."""

    def __init__(self, view: CrossView, index: int) -> None:
        self._view = view
        self._index = index

    @property
    def keys(self) -> torch.Tensor:
        return self._view.keys(self._index)

    @property
    def values(self) -> torch.Tensor:
        return self._view.values(self._index)


class DecoderCache(EncoderDecoderCache):  # type: ignore[misc]
    """The two caches of one forward pass. `has_cross`: the second cache already holds the encoder's text."""

    def __init__(self, self_attention: Cache, cross_attention: Cache, *, num_layers: int, has_cross: bool) -> None:
        self.self_attention_cache = self_attention
        self.cross_attention_cache = cross_attention
        self.is_updated = dict.fromkeys(range(num_layers), has_cross)
