"""Runs models whose layers carry state from token to token: transformers' code, run by run, over a row per slot."""

# T tokens of the step, B sequences of a run, n tokens of each, N rows whose logits are wanted, V vocabulary,
# D width of the hidden states

from typing import Any

import torch

from textmill_shard.attention.seam import StepContext
from textmill_shard.batch_runs import Run, cut_into_runs
from textmill_shard.decoder_tap import DecoderTap
from textmill_shard.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.kv_pool import KvPool
from textmill_shard.selective_scan import begin_scans_in_a_state, scanning
from textmill_shard.state_cache import StateCache
from textmill_shard.state_rows import StateRows, call_with_cache


class StateDecoder:
    """All single tokens of a step are one run, each chunk another. Attention layers read the paged pool as ever."""

    has_own_threads = False

    def __init__(
        self, model: Any, context: StepContext, tap: DecoderTap, *, rows: StateRows, device: torch.device
    ) -> None:
        self._model = model
        self._context = context
        self._tap = tap
        self._rows = rows
        self._device = device
        self._first = torch.zeros(1, dtype=torch.int64, device=device)
        begin_scans_in_a_state(model)

    def bind(self, pool: KvPool | None) -> None:
        self._context.pool = pool

    def forward(self, batch: ForwardBatch, wants_hidden: bool) -> ForwardOutput:
        logits: list[torch.Tensor] = []
        hidden: list[torch.Tensor] = []
        runs = cut_into_runs(batch)
        for run in runs:
            logits.append(self._run(run))
            if wants_hidden:
                hidden.append(self._tap.take_hidden())
        order_N = torch.tensor([row for run in runs for row in run.logit_rows], device=self._device).long()
        logits_NV = torch.cat(logits)
        hidden_TD = None
        if wants_hidden:
            found_TD = torch.cat(hidden)
            hidden_TD = found_TD.new_zeros(batch.input_ids_T.shape[0], found_TD.shape[1])
            hidden_TD[torch.cat([run.tokens for run in runs])] = found_TD
        return ForwardOutput(
            logits_NV=torch.empty_like(logits_NV).index_copy_(0, order_N, logits_NV), hidden_TD=hidden_TD
        )

    def project(self, hidden_nD: torch.Tensor) -> torch.Tensor:
        with self._tap.given(hidden_nD):
            ids = torch.zeros(1, hidden_nD.shape[0], dtype=torch.int64, device=self._device)
            logits_nV: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits[0]
        return logits_nV.float()

    def _run(self, run: Run) -> torch.Tensor:
        """Give `[rows, V]` float32, in the order of `run.logit_rows`."""
        batch = run.batch
        slots_B = batch.slots_R
        if slots_B is None:  # sizes only (memory.py)
            slots_B = torch.full((run.num_sequences,), self._rows.scratch_row, device=self._device)
        self._rows.clear(slots_B[run.is_fresh_B])
        cache = StateCache(self._rows, slots_B)
        self._context.begin(batch)
        is_single = batch.max_query_len == 1
        with scanning(cache):
            output = call_with_cache(
                self._model,
                cache,
                input_ids=batch.input_ids_T.view(run.num_sequences, -1),
                position_ids=batch.position_ids_T.view(run.num_sequences, -1),
                use_cache=False,
                logits_to_keep=self._first if is_single else batch.logit_rows_N,
            )
        cache.finish()
        if is_single:
            logits_nV: torch.Tensor = output.logits[:, 0].index_select(0, batch.logit_rows_N)
        else:
            logits_nV = output.logits[0]
        return logits_nV.float()
