"""Keys and values for models with attention code of their own: gathered from the paged pool, padded on the left."""

# B sequences of a sub-batch, n tokens of each, C tokens of the longest context, K key/value heads, D key or value width

import inspect
from typing import Any

import torch
from transformers import Cache

from textmill_shard.layouts.sub_batches import SubBatch
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_pool import KvPool


class PaddedView(Cache):  # type: ignore[misc]
    """Replaces transformers' cache during one sub-batch. `update` stores in the pool and returns whole contexts."""

    def __init__(
        self,
        batch: ForwardBatch,
        pool: KvPool,
        pool_index_of_layer: dict[int, int],
        *,
        skipped_B: torch.Tensor | None = None,
    ) -> None:
        """Prepare the places of a batch whose sequences have equally many tokens.

        Each sequence begins `skipped_B` places (int64) into its block table. `batch` counts these places as tokens of
        the sequence's context.
        """
        super().__init__(layers=[])
        block_size = pool.block_size
        self._pool = pool
        self._index_of_layer = pool_index_of_layer
        self._new_places_T = batch.kv_places_T
        self._num_new = batch.max_query_len
        contexts_B1 = batch.context_lens_R.long().unsqueeze(1)
        skipped_B1 = torch.zeros_like(contexts_B1) if skipped_B is None else skipped_B.unsqueeze(1)
        contexts_B1 = contexts_B1 - skipped_B1
        self._num_keys = int(contexts_B1.max())
        positions_BC = torch.arange(self._num_keys, device=contexts_B1.device) - (self._num_keys - contexts_B1)
        self._is_padding_BC = positions_BC < 0
        self._has_padding = bool(self._is_padding_BC.any())
        positions_BC = positions_BC.clamp_(min=0) + skipped_B1
        blocks_BC = batch.block_tables_RB.long().gather(1, positions_BC // block_size)
        self._places_BC = blocks_BC * block_size + positions_BC % block_size

    @property
    def mask_BC(self) -> torch.Tensor:
        """Return int64 with 1 for each key and 0 for padding."""
        return (~self._is_padding_BC).long()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values `[B, K, n, D]` and return those of the whole contexts `[B, K, C, D]`."""
        index = self._index_of_layer[layer_idx]
        keys, values = self._pool.keys[index], self._pool.values[index]
        return self._store_and_gather(keys, key_states), self._store_and_gather(values, value_states)

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        return self._num_keys - self._num_new

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._num_keys, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._num_keys - self._num_new

    def _store_and_gather(self, pool: torch.Tensor, new_BKnD: torch.Tensor) -> torch.Tensor:
        places = pool.flatten(0, 1)
        places.index_copy_(0, self._new_places_T, new_BKnD.transpose(1, 2).flatten(0, 1).to(pool.dtype))
        gathered_BCKD = places.index_select(0, self._places_BC.flatten()).view(
            *self._places_BC.shape, *places.shape[1:]
        )
        if self._has_padding:
            # The place of another token may hold NaN, which a mask does not undo.
            gathered_BCKD.masked_fill_(self._is_padding_BC[:, :, None, None], 0.0)
        return gathered_BCKD.transpose(1, 2).to(new_BKnD.dtype)


class PaddedCaller:
    """Passes the model a padded view for each sub-batch."""

    def __init__(self, model: Any, layers: tuple[int, ...]) -> None:
        self._model = model
        self._index_of_layer = {layer: index for index, layer in enumerate(layers)}
        self._has_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._pool: KvPool | None = None

    def bind(self, pool: KvPool | None) -> None:
        self._pool = pool

    def begin_step(self) -> None:
        """Do nothing, because a step changes keys and values alone."""

    def finish_step(self) -> None:
        """Do nothing, because a step changes keys and values alone."""

    def call(self, sub_batch: SubBatch, **inputs: Any) -> Any:
        assert self._pool is not None, "allocate_kv comes before forward"
        view = PaddedView(sub_batch.batch, self._pool, self._index_of_layer)
        if self._has_positions:
            inputs["position_ids"] = sub_batch.batch.position_ids_T.view(sub_batch.num_sequences, -1)
        return self._model(
            input_ids=sub_batch.batch.input_ids_T.view(sub_batch.num_sequences, -1),
            attention_mask=view.mask_BC,
            past_key_values=view,
            **inputs,
        )
