"""Runs models with an encoder: each new text goes through the encoder alone, and all decoders run in one batch."""

# T tokens of the step, B sequences of a sub-batch, n tokens of each, N rows whose
# logits are wanted, E tokens that an encoder reads, C tokens of the longest decoder context, V vocabulary

from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from textmill_shard.layers.adapted_modules import AdaptedModules
from textmill_shard.layouts.cross_view import CrossStore, CrossView, DecoderCache
from textmill_shard.layouts.padded_view import PaddedView
from textmill_shard.layouts.row_positions import RowPositions
from textmill_shard.layouts.sub_batches import SubBatch, cut_into_sub_batches
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.kv_pool import KvPool


class EncoderDecoder:
    """Runs a step as one sub-batch per encoder text, one for all single tokens, and one per further chunk."""

    has_own_threads = False

    def __init__(
        self,
        model: Any,
        positions: RowPositions,
        adapters: AdaptedModules,
        *,
        num_layers: int,
        device: torch.device,
    ) -> None:
        self._model = model
        self._adapters = adapters
        self._positions = positions
        self._num_layers = num_layers
        self._device = device
        self._index_of_layer = {layer: layer for layer in range(num_layers)}
        self._pool: KvPool | None = None
        self._width = int(model.config.hidden_size)

    def bind(self, pool: KvPool | None) -> None:
        self._pool = pool

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, wants_hidden: bool) -> ForwardOutput:
        """Compute the step. Hidden states are never returned, so that there are no prompt log-probabilities."""
        logits_NV = torch.cat([self._run(sub_batch) for sub_batch in cut_into_sub_batches(batch)])
        return ForwardOutput(logits_NV=logits_NV, hidden_TD=None)

    def project(self, hidden_nD: torch.Tensor, adapter: int) -> torch.Tensor:
        raise AssertionError("no hidden states were handed out")

    def _run(self, sub_batch: SubBatch) -> torch.Tensor:
        compute = self._encode if bool(sub_batch.is_fresh_B[0]) else self._decode
        rows = None if sub_batch.batch.adapters_R is None else self._adapters.rows_of_sequences(sub_batch.batch)
        if rows is None:
            return compute(sub_batch)
        with self._adapters.running(rows):
            return compute(sub_batch)

    def _encode(self, sub_batch: SubBatch) -> torch.Tensor:
        """Encode one text, store its keys and values for the decoder, and compute the text's decoder tokens."""
        batch, pool = sub_batch.batch, self._pool
        assert pool is not None, "allocate_kv comes before forward"
        assert batch.encoder_lens_R is not None
        num_read = int(batch.encoder_lens_R[0])
        num_decoded = batch.max_query_len - num_read
        ids_1n = batch.input_ids_T[None, num_read:]
        if num_decoded:
            own = replace(
                batch,
                input_ids_T=batch.input_ids_T[num_read:],
                kv_places_T=batch.kv_places_T[num_read:],
                max_query_len=num_decoded,
            )
            own_cache = PaddedView(own, pool, self._index_of_layer, skipped_B=batch.encoder_lens_R)
        else:
            # The layers make keys and values of the encoder's text when a decoder token runs, so one token runs here,
            # in a cache that is thrown away.
            ids_1n, own_cache = batch.input_ids_T[None, :1], DynamicCache()
        store = CrossStore(pool, batch.kv_places_T[:num_read])
        with self._positions.given(torch.arange(ids_1n.shape[1], device=self._device).unsqueeze(0)):
            output = self._model(
                input_ids=batch.input_ids_T[None, :num_read],
                decoder_input_ids=ids_1n,
                past_key_values=DecoderCache(own_cache, store, num_layers=self._num_layers, has_cross=False),
                use_cache=False,
            )
        logits_nV: torch.Tensor = output.logits[0].index_select(0, batch.logit_rows_N - num_read)
        return logits_nV.float()

    def _decode(self, sub_batch: SubBatch) -> torch.Tensor:
        """Return logits `[rows, V]` float32, in the order of the step."""
        batch, pool, num_rows = sub_batch.batch, self._pool, sub_batch.num_sequences
        assert pool is not None, "allocate_kv comes before forward"
        lens_B = batch.encoder_lens_R
        assert lens_B is not None
        own = PaddedView(batch, pool, self._index_of_layer, skipped_B=lens_B)
        dtype = self._model.dtype
        cross = CrossView(pool, batch.block_tables_RB, lens_B, dtype)
        # Only the shape counts, because the keys and values of the text are in the cache.
        read_BED = torch.zeros((), dtype=dtype, device=self._device).expand(*cross.mask_BE.shape, self._width)
        with self._positions.given(batch.position_ids_T.view(num_rows, -1) - lens_B.unsqueeze(1)):
            output = self._model(
                encoder_outputs=BaseModelOutput(last_hidden_state=read_BED),
                attention_mask=cross.mask_BE,
                decoder_input_ids=batch.input_ids_T.view(num_rows, -1),
                decoder_attention_mask=own.mask_BC,
                past_key_values=DecoderCache(own, cross, num_layers=self._num_layers, has_cross=True),
                use_cache=False,
            )
        logits_TV: torch.Tensor = output.logits.flatten(0, 1)
        return logits_TV.index_select(0, batch.logit_rows_N).float()
