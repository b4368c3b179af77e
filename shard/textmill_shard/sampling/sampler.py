"""Samples the next token of every row of a step in one pass: stages, then the best id or a draw.

N rows, V vocabulary, S slots.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from textmill_shard.model.forward_batch import RowScan
from textmill_shard.sampling.draw import Draw
from textmill_shard.sampling.grammar_mask import GrammarMask
from textmill_shard.sampling.logprobs import TopTokens, chosen_logprobs, top_tokens
from textmill_shard.sampling.row_scan import RowScanner, TorchRowScanner
from textmill_shard.sampling.row_selection import RowSelector, SelectedRows, Selection, StageRows, StepRows
from textmill_shard.sampling.stage import SlotText
from textmill_shard.sampling.stage_order import build_stages
from textmill_shard.sampling.watermark import DEFAULT_KEY, WatermarkKey
from textmill_shard.slots.plan import IdArray
from textmill_shard.slots.sampling_params import SamplingParams

DEFAULT_NUM_CANDIDATES = 1024


@dataclass(frozen=True, slots=True)
class SampledRows:
    """One entry per row, in the order of the rows; tensors on the device of the logits.

    `logprobs_N` float32 (NaN = not asked) is None when no row asked; `top` is empty when none asked for alternatives.
    A row in `not_finite_N` (bool) had NaN or an infinity in its logits: its token is 0 and means nothing.
    """

    tokens_N: Tensor
    logprobs_N: Tensor | None
    top: tuple[TopTokens | None, ...]
    not_finite_N: Tensor


class Sampler:
    """Owns the sampling state of the slots, on one device.

    `admit` seats a request; each step has one `select` (whose result is copied to the device, batch_builder.py), one
    `sample`, which changes no state, and one `append`. `num_candidates` may be changed for tests: the distribution is
    the same for any number, the draws are not.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        device: torch.device,
        num_candidates: int = DEFAULT_NUM_CANDIDATES,
        watermark: WatermarkKey = DEFAULT_KEY,
        scanner: RowScanner | None = None,  # None: torch's, on any device
    ) -> None:
        self.device = device
        self.grammar_mask = GrammarMask(num_slots=num_slots, device=device)
        self._scanner = scanner or TorchRowScanner()
        self._stages = build_stages(
            num_slots=num_slots, device=device, grammar_mask=self.grammar_mask, watermark=watermark
        )
        self._draw = Draw(num_slots=num_slots, device=device, num_candidates=num_candidates)
        self._top_n_S = np.zeros(num_slots, dtype=np.int64)  # alternatives
        # What a row may ask for; a place in this order is a place in a step's rows.
        wishes = (
            *(stage.wants for stage in self._stages),
            self._draw.wants,
            self._draw.wants_row_mass,
            _wants_alternatives,
            _wants_logprobs,
        )
        num_stages = len(self._stages)
        self._matched = self._stages.index(self.grammar_mask)
        self._drawn, self._massed, self._rated, self._asked = range(num_stages, len(wishes))
        self._selector = RowSelector(wishes, num_slots=num_slots)

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        """Begin anew for the request that takes the slot (rule 18)."""
        self._selector.admit(slot, params)
        for stage in self._stages:
            if stage.wants(params):
                stage.admit(slot, params, tokens)
        if self._draw.wants(params):
            self._draw.admit(slot, params, tokens)
        self._top_n_S[slot] = params.top_n_tokens

    def select(self, slots_N: IdArray) -> Selection:
        """Which of the rows of a step ask for what."""
        return self._selector.select(slots_N)

    def takes_best(self, selection: Selection) -> bool:
        """Whether every row takes the best id of the model's own scores.

        That is so where no row asks for a stage, a draw or alternatives; log-probabilities are no obstacle.
        """
        return not any(selection[: self._asked])

    def logprob_rows(self, selection: Selection) -> SelectedRows | None:
        """The rows that ask for the log-probability of their token."""
        return selection[self._asked]

    def grammar_rows(self, selection: Selection) -> SelectedRows | None:
        """The rows that need a mask (`grammar_mask`) before they are sampled."""
        return selection[self._matched]

    def sample(self, logits_NV: Tensor, rows: StepRows, scan: RowScan | None = None) -> SampledRows:
        """One token per row. `logits_NV` float32 is left as it is, and so is all state: `append` is the caller's.

        `scan` is that of the logits, with the normaliser, where it is known.
        """
        rated, asked = rows[self._rated], rows[self._asked]
        wants_mass = rated is not None or asked is not None
        if scan is None:
            scan = self._scanner.scan(logits_NV, wants_mass=wants_mass)
        scores_NV = self._apply_stages(logits_NV, rows)
        tokens_N = self._choose(scores_NV, rows, scan if scores_NV is logits_NV else None)
        tokens_N = tokens_N.masked_fill(scan.not_finite_N, 0)
        if not wants_mass:
            return SampledRows(tokens_N=tokens_N, logprobs_N=None, top=(), not_finite_N=scan.not_finite_N)
        assert scan.log_mass_N is not None
        return SampledRows(
            tokens_N=tokens_N,
            logprobs_N=None if asked is None else _chosen(logits_NV, tokens_N, scan.log_mass_N, asked),
            top=() if rated is None else self._alternatives(logits_NV, scan.log_mass_N, rated),
            not_finite_N=scan.not_finite_N,
        )

    def append(self, rows: StepRows, tokens_N: Tensor) -> None:
        """Take in the tokens (int64, on the device) that the rows of the step sampled."""
        for place, stage in enumerate(self._stages):
            staged = rows[place]
            if staged is not None:
                left = stage.append(staged, tokens_N if staged.on_host.is_all else tokens_N[staged.rows_G])
                if len(left):
                    self._selector.leave(left, place)
        drawn = rows[self._drawn]
        if drawn is not None:
            self._draw.append(drawn)

    def _apply_stages(self, logits_NV: Tensor, rows: StepRows) -> Tensor:
        """Scores [N, V] float32: `logits_NV` itself when no row asks for a change, else an edited copy."""
        scores_NV = logits_NV
        for place, stage in enumerate(self._stages):
            staged = rows[place]
            if staged is not None:
                if scores_NV is logits_NV:
                    scores_NV = logits_NV.clone()
                stage.apply(scores_NV, staged)
        return scores_NV

    def _choose(self, scores_NV: Tensor, rows: StepRows, scan: RowScan | None) -> Tensor:
        """[N] int64; `scan` is that of the scores where it is known."""
        drawn, massed = rows[self._drawn], rows[self._massed]
        if drawn is not None and drawn.on_host.is_all:
            return self._draw.choose(scores_NV, drawn, massed)
        tokens_N = (scan or self._scanner.scan(scores_NV, wants_mass=False)).best_N
        if drawn is not None:
            tokens_N[drawn.rows_G] = self._draw.choose(scores_NV[drawn.rows_G], drawn, massed)
        return tokens_N

    def _alternatives(self, logits_NV: Tensor, log_mass_N: Tensor, rated: StageRows) -> tuple[TopTokens | None, ...]:
        """Per row the alternatives that its request asked for."""
        counts = self._top_n_S[rated.on_host.slots_G].tolist()
        if rated.on_host.is_all:
            return top_tokens(logits_NV, counts, log_mass_N)
        tops = top_tokens(logits_NV[rated.rows_G], counts, log_mass_N[rated.rows_G])
        found = dict(zip(rated.on_host.rows_G.tolist(), tops, strict=True))
        return tuple(found.get(row) for row in range(len(logits_NV)))


def _wants_alternatives(params: SamplingParams) -> bool:
    return params.top_n_tokens > 0


def _wants_logprobs(params: SamplingParams) -> bool:
    return params.wants_logprobs


def _chosen(logits_NV: Tensor, tokens_N: Tensor, log_mass_N: Tensor, asked: StageRows) -> Tensor:
    """[N] float32 log-probabilities of the sampled ids, NaN for rows that did not ask."""
    logprobs_N = chosen_logprobs(logits_NV, tokens_N, log_mass_N)
    if asked.on_host.is_all:
        return logprobs_N
    is_asked_N = torch.zeros_like(logprobs_N, dtype=torch.bool).index_fill_(0, asked.rows_G, True)
    return logprobs_N.masked_fill_(~is_asked_N, torch.nan)
