"""Runs transformers' modelling code on flat batches: any architecture whose attention goes through the seam."""

# T tokens of the step, N rows whose logits are wanted, V vocabulary, D width of the hidden states, n rows handed in

import inspect
from typing import Any

import torch

from textmill_shard.attention.seam import StepContext
from textmill_shard.layers.adapted_modules import AdaptedModules
from textmill_shard.layouts.decoder_tap import DecoderTap
from textmill_shard.layouts.position_cache import PositionCache
from textmill_shard.model.adapter import NO_ADAPTER
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.kv_pool import KvPool
from textmill_shard.model.media_inputs import MediaInputs


class TransformersDecoder:
    """A model whose attention layers stand attached to `context` and whose hidden states pass `tap`."""

    def __init__(
        self,
        model: Any,
        context: StepContext,
        tap: DecoderTap,
        adapters: AdaptedModules,
        *,
        device: torch.device,
        has_own_threads: bool = False,
        media: MediaInputs | None = None,
    ) -> None:
        """`media` is None for a model that takes no images."""
        self.has_own_threads = has_own_threads
        self._model = model
        self._context = context
        self._tap = tap
        self._adapters = adapters
        self._device = device
        self._media = media
        self._can_choose_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def bind(self, pool: KvPool | None) -> None:
        self._context.pool = pool

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, wants_hidden: bool) -> ForwardOutput:
        rows = None if batch.adapters_R is None else self._adapters.rows_of_tokens(batch)
        if rows is None:
            return self._forward(batch, wants_hidden)
        with self._adapters.running(rows):
            return self._forward(batch, wants_hidden)

    def project(self, hidden_nD: torch.Tensor, adapter: int) -> torch.Tensor:
        if adapter == NO_ADAPTER:
            return self._project(hidden_nD)
        with self._adapters.running(self._adapters.rows_of_one(adapter)):
            return self._project(hidden_nD)

    def _forward(self, batch: ForwardBatch, wants_hidden: bool) -> ForwardOutput:
        self._context.begin(batch)
        choice = {"logits_to_keep": batch.logit_rows_N} if self._can_choose_logits else {}
        rope = batch.rope_positions_3T
        inputs = {
            "position_ids": batch.position_ids_T.unsqueeze(0) if rope is None else rope.unsqueeze(1),
            "past_key_values": PositionCache(batch.position_ids_T),
            "use_cache": False,
            **choice,
        }
        if batch.media is None:
            output = self._model(input_ids=batch.input_ids_T.unsqueeze(0), **inputs)
        else:
            assert self._media is not None, "the model takes no images"
            with self._media.added(batch.media):
                output = self._model(inputs_embeds=self._media.embed(batch.input_ids_T, batch.media), **inputs)
        logits_NV: torch.Tensor = output.logits[0]
        if not self._can_choose_logits:
            logits_NV = logits_NV.index_select(0, batch.logit_rows_N)
        hidden_TD = self._tap.take_hidden() if wants_hidden else None
        out_NV = batch.logits_out_NV
        logits_NV = logits_NV.float() if out_NV is None else out_NV.copy_(logits_NV)
        return ForwardOutput(logits_NV=logits_NV, hidden_TD=hidden_TD)

    def _project(self, hidden_nD: torch.Tensor) -> torch.Tensor:
        with self._tap.given(hidden_nD):
            output = self._model(
                input_ids=torch.zeros(1, hidden_nD.shape[0], dtype=torch.int64, device=self._device), use_cache=False
            )
        logits_nV: torch.Tensor = output.logits[0].float()
        return logits_nV
