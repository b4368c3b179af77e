"""Runs a step as several forward passes of transformers' code, for models that cannot read a flat batch."""

# T tokens of the step, B sequences of a sub-batch, n tokens of each, N rows whose logits are wanted, V vocabulary,
# D width of the hidden states

import inspect
from typing import Any, Protocol

import torch

from textmill_shard.layers.adapted_modules import AdaptedModules
from textmill_shard.layouts.decoder_tap import DecoderTap
from textmill_shard.layouts.sub_batches import SubBatch, cut_into_sub_batches
from textmill_shard.model.adapter import NO_ADAPTER
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.kv_pool import KvPool


class RunCaller(Protocol):
    """Calls the model with a cache for one sub-batch."""

    def bind(self, pool: KvPool | None) -> None: ...

    def begin_step(self) -> None:
        """Forget what a step that failed has changed."""
        ...

    def call(self, sub_batch: SubBatch, **inputs: Any) -> Any:
        """Return the model's output for `[B, n]` tokens. `inputs` are passed to the model's forward as they are."""
        ...

    def finish_step(self) -> None:
        """Keep what the calls of the step have changed beside keys and values, which a further try writes again."""
        ...


class RunDecoder:
    """Runs the decodes of a step as one sub-batch, and each chunk as a sub-batch of its own."""

    has_own_threads = False  # torch computes scans, convolutions and the models' own attention

    def __init__(
        self, model: Any, caller: RunCaller, tap: DecoderTap, adapters: AdaptedModules, *, device: torch.device
    ) -> None:
        self._model = model
        self._caller = caller
        self._tap = tap
        self._adapters = adapters
        self._device = device
        self._first = torch.zeros(1, dtype=torch.int64, device=device)
        self._can_choose_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def bind(self, pool: KvPool | None) -> None:
        self._caller.bind(pool)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, wants_hidden: bool) -> ForwardOutput:
        self._caller.begin_step()
        sub_batches = cut_into_sub_batches(batch)
        logits: list[torch.Tensor] = []
        hidden: list[torch.Tensor] = []
        for sub_batch in sub_batches:
            logits.append(self._run(sub_batch))
            if wants_hidden:
                hidden.append(self._tap.take_hidden())
        logits_NV = logits[0] if len(logits) == 1 else torch.cat(logits)
        hidden_TD = None
        if wants_hidden:
            found_TD = torch.cat(hidden)
            hidden_TD = found_TD.new_zeros(batch.input_ids_T.shape[0], found_TD.shape[1])
            hidden_TD[: len(found_TD)] = found_TD
        self._caller.finish_step()
        return ForwardOutput(logits_NV=logits_NV, hidden_TD=hidden_TD)

    def project(self, hidden_nD: torch.Tensor, adapter: int) -> torch.Tensor:
        if adapter == NO_ADAPTER:
            return self._project(hidden_nD)
        with self._adapters.running(self._adapters.rows_of_one(adapter)):
            return self._project(hidden_nD)

    def _project(self, hidden_nD: torch.Tensor) -> torch.Tensor:
        with self._tap.given(hidden_nD):
            ids = torch.zeros(1, hidden_nD.shape[0], dtype=torch.int64, device=self._device)
            logits_nV: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits[0]
        return logits_nV.float()

    def _run(self, sub_batch: SubBatch) -> torch.Tensor:
        """Return logits `[rows, V]` float32, in the order of the step."""
        rows = None if sub_batch.batch.adapters_R is None else self._adapters.rows_of_sequences(sub_batch.batch)
        if rows is None:
            return self._call(sub_batch)
        with self._adapters.running(rows):
            return self._call(sub_batch)

    def _call(self, sub_batch: SubBatch) -> torch.Tensor:
        is_single = sub_batch.batch.max_query_len == 1
        rows = sub_batch.batch.logit_rows_N
        choice = {"logits_to_keep": self._first if is_single else rows} if self._can_choose_logits else {}
        output = self._caller.call(sub_batch, use_cache=False, **choice)
        if is_single:
            logits_nV: torch.Tensor = output.logits[:, 0].index_select(0, rows)
        else:
            logits_nV = output.logits[0] if self._can_choose_logits else output.logits[0].index_select(0, rows)
        return logits_nV.float()
