"""Draws the next token of every row of a step in one pass.

N rows, V vocabulary, G greedy rows, S drawn rows, C candidates (the best scores of a row).

A row draws by the Gumbel-max trick: the largest log-weight + noise, noise being a function of (request seed, position,
token id). Only the candidates are looked at. The rest of the row is not cut off by that: where no filter of the request
does so, it takes part as one more candidate with its exact mass and noise of its own. When it wins, or when a filter's
set reaches beyond the candidates, that row alone is worked out in full.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from textmill_shard.model.forward_batch import RowScan
from textmill_shard.sampling import noise
from textmill_shard.sampling.candidates import best_scores
from textmill_shard.sampling.logits_processors import process
from textmill_shard.sampling.logprobs import TopTokens, chosen_logprobs, top_tokens
from textmill_shard.sampling.row_scan import RowScanner, TorchRowScanner
from textmill_shard.sampling.slot_sampling import SlotSampling
from textmill_shard.sampling.truncation import (
    RowTotals,
    build_limits,
    is_truncated,
    needs_row_mass,
    truncate,
)
from textmill_shard.sampling.watermark import DEFAULT_KEY, WatermarkKey

DEFAULT_NUM_CANDIDATES = 1024
SPARE_CANDIDATES = 16  # beyond the largest top-k, so that the cut and its ties fall inside
LEAST_SCORE = -1e4  # its exponential is 0 in float32
FULL_ROWS = 4  # rows worked out in full at once


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
    """Stateless; what a draw depends on is in the logits and in the slots.

    `num_candidates` may be changed for tests: the distribution is the same for any number, the draws are not.
    """

    def __init__(
        self,
        *,
        num_candidates: int = DEFAULT_NUM_CANDIDATES,
        watermark: WatermarkKey = DEFAULT_KEY,
        scanner: RowScanner | None = None,  # None: torch's, on any device
    ) -> None:
        self._scanner = scanner or TorchRowScanner()
        self._num_candidates = num_candidates
        self._watermark = watermark

    def sample(self, logits_NV: Tensor, slots: Sequence[SlotSampling], scan: RowScan | None = None) -> SampledRows:
        """One token per row. `logits_NV` float32 is left as it is. Slots are read only: `append` is the caller's.

        `scan` is that of the logits, with the normaliser, where it is known.
        """
        assert len(logits_NV) == len(slots), (len(logits_NV), len(slots))
        wants_mass = any(slot.params.wants_logprobs or slot.params.top_n_tokens > 0 for slot in slots)
        if scan is None:
            scan = self._scanner.scan(logits_NV, wants_mass=wants_mass)
        scores_NV = process(logits_NV, slots, self._watermark)
        tokens_N = self._choose(scores_NV, slots, scan if scores_NV is logits_NV else None)
        tokens_N = tokens_N.masked_fill(scan.not_finite_N, 0)
        if not wants_mass:
            return SampledRows(tokens_N=tokens_N, logprobs_N=None, top=(), not_finite_N=scan.not_finite_N)
        assert scan.log_mass_N is not None
        return SampledRows(
            tokens_N=tokens_N,
            logprobs_N=_chosen(logits_NV, tokens_N, scan.log_mass_N, slots),
            top=_alternatives(logits_NV, scan.log_mass_N, slots),
            not_finite_N=scan.not_finite_N,
        )

    def _choose(self, scores_NV: Tensor, slots: Sequence[SlotSampling], scan: RowScan | None) -> Tensor:
        """[N] int64; `scan` is that of the scores where it is known."""
        drawn = [row for row, slot in enumerate(slots) if slot.params.do_sample]
        if len(drawn) == len(slots):
            return self._draw(scores_NV, slots)
        tokens_N = (scan or self._scanner.scan(scores_NV, wants_mass=False)).best_N
        if drawn:
            tokens_N[drawn] = self._draw(scores_NV[drawn], [slots[row] for row in drawn])
        return tokens_N

    def _width(self, slots: Sequence[SlotSampling]) -> int:
        """Candidates to look at: fewer when top-k bounds every row, since such rows draw the same from any number."""
        widest = max(slot.params.top_k or self._num_candidates for slot in slots)
        return min(self._num_candidates, widest + SPARE_CANDIDATES)

    def _draw(self, logits_SV: Tensor, slots: Sequence[SlotSampling]) -> Tensor:
        """[S] int64: one draw per row."""
        vocab_size = logits_SV.shape[-1]
        num_candidates = min(self._width(slots), vocab_size)
        is_whole = num_candidates == vocab_size
        device = logits_SV.device
        draws = _Draws(slots, device)
        best_SC, ids_SC = best_scores(logits_SV, num_candidates)
        highest_S1 = best_SC[:, :1]
        scores_SC = ((best_SC - highest_S1) / draws.temperature_S1).double()
        totals = _row_totals(logits_SV, highest_S1, draws, slots)
        kept = truncate(scores_SC, build_limits([slot.params for slot in slots], device), totals, is_whole=is_whole)
        noisy_SC = scores_SC + noise.gumbel(draws.seed_words_S2, draws.positions_S, ids_SC)
        noisy_SC = noisy_SC.masked_fill(~kept.keep_RC, -torch.inf)
        winner_S = noisy_SC.argmax(-1, keepdim=True)
        tokens_S = ids_SC.gather(-1, winner_S).squeeze(-1)
        if is_whole:
            return tokens_S
        tail_ids_S1 = torch.full_like(ids_SC[:, :1], noise.TAIL_ID)
        tail_noise_S = noise.gumbel(draws.seed_words_S2, draws.positions_S, tail_ids_S1).squeeze(-1)
        # Behind a candidate that a grammar forbids nothing is possible; rounding must not leave a tail there.
        log_tail_S = _log_difference(totals.log_mass_R, scores_SC.logsumexp(-1))
        log_tail_S = log_tail_S.masked_fill(torch.isinf(scores_SC[:, -1]), -torch.inf)
        is_open_S = torch.tensor([not is_truncated(slot.params) for slot in slots], device=device)
        tail_wins_S = is_open_S & (log_tail_S + tail_noise_S > noisy_SC.gather(-1, winner_S).squeeze(-1))
        # Host reads: which rows (few, mostly none) are to be worked out in full.
        for rows in _groups((~(is_open_S | kept.fits_R)).nonzero().flatten().tolist()):
            tokens_S[rows] = _draw_full(logits_SV[rows], [slots[row] for row in rows])
        for rows in _groups(tail_wins_S.nonzero().flatten().tolist()):
            tokens_S[rows] = _draw_beyond(logits_SV[rows], ids_SC[rows], [slots[row] for row in rows])
        return tokens_S


class _Draws:
    """What S draws depend on besides scores and filters, on the device."""

    def __init__(self, slots: Sequence[SlotSampling], device: torch.device) -> None:
        self.seed_words_S2 = noise.seed_words([slot.params.seed for slot in slots], device)
        self.positions_S = torch.tensor([slot.num_output_tokens for slot in slots], device=device)
        self.temperature_S1 = torch.tensor(
            [[slot.params.temperature] for slot in slots], dtype=torch.float32, device=device
        )


def _groups(rows: list[int]) -> list[list[int]]:
    """At most FULL_ROWS rows at a time: a full row of a large vocabulary takes some ten megabytes on its way."""
    return [rows[start : start + FULL_ROWS] for start in range(0, len(rows), FULL_ROWS)]


def _draw_full(logits_SV: Tensor, slots: Sequence[SlotSampling]) -> Tensor:
    """[S] draws from rows with all their scores sorted: for filters whose set is wider than the candidates."""
    draws = _Draws(slots, logits_SV.device)
    sorted_SV, ids_SV = logits_SV.sort(dim=-1, descending=True)
    highest_S1 = sorted_SV[:, :1]
    scores_SV = ((sorted_SV - highest_S1) / draws.temperature_S1).double()
    totals = _row_totals(logits_SV, highest_S1, draws, slots)
    limits = build_limits([slot.params for slot in slots], logits_SV.device)
    kept = truncate(scores_SV, limits, totals, is_whole=True)
    noisy_SV = scores_SV + noise.gumbel(draws.seed_words_S2, draws.positions_S, ids_SV)
    winner_S1 = noisy_SV.masked_fill(~kept.keep_RC, -torch.inf).argmax(-1, keepdim=True)
    return ids_SV.gather(-1, winner_S1).squeeze(-1)


def _draw_beyond(logits_SV: Tensor, candidates_SC: Tensor, slots: Sequence[SlotSampling]) -> Tensor:
    """[S] draws from what is not a candidate, given that the tail as a whole has won. Their noise is unused yet."""
    draws = _Draws(slots, logits_SV.device)
    rest_SV = logits_SV.scatter(-1, candidates_SC, -torch.inf)
    scores_SV = ((rest_SV - rest_SV.amax(-1, keepdim=True)) / draws.temperature_S1).double()
    ids_SV = torch.arange(logits_SV.shape[-1], device=logits_SV.device).expand_as(logits_SV)
    return (scores_SV + noise.gumbel(draws.seed_words_S2, draws.positions_S, ids_SV)).argmax(-1)


def _row_totals(logits_SV: Tensor, highest_S1: Tensor, draws: _Draws, slots: Sequence[SlotSampling]) -> RowTotals:
    """Totals of the full rows, for the rows whose filters (or whose lack of any) need them; 0 for the others."""
    log_mass_S = torch.zeros(len(slots), dtype=torch.float64, device=logits_SV.device)
    entropy_S = torch.zeros_like(log_mass_S)
    needed = [row for row, slot in enumerate(slots) if needs_row_mass(slot.params)]
    if not needed:
        return RowTotals(log_mass_R=log_mass_S, entropy_R=entropy_S)
    is_all = len(needed) == len(slots)
    rows_SV = logits_SV if is_all else logits_SV[needed]
    # In place from the second step on: fresh memory for [S, V] costs more than the arithmetic.
    scores_SV = rows_SV - highest_S1[needed]
    scores_SV /= draws.temperature_S1[needed]
    needs_entropy = any(slots[row].params.typical_p < 1.0 for row in needed)
    weights_SV = scores_SV.exp() if needs_entropy else scores_SV.exp_()
    mass_S = weights_SV.sum(-1).double()
    log_mass_S[needed] = mass_S.log()
    if needs_entropy:
        # A weight of 0 has a score of minus infinity at most; the product is to be 0.
        mean_score_S = weights_SV.mul_(scores_SV.clamp_(min=LEAST_SCORE)).sum(-1).double() / mass_S
        entropy_S[needed] = mass_S.log() - mean_score_S
    return RowTotals(log_mass_R=log_mass_S, entropy_R=entropy_S)


def _log_difference(log_whole_S: Tensor, log_part_S: Tensor) -> Tensor:
    """log(exp(whole) - exp(part)); minus infinity where rounding leaves nothing."""
    return log_whole_S + torch.log1p(-(log_part_S - log_whole_S).clamp(max=0.0).exp())


def _chosen(logits_NV: Tensor, tokens_N: Tensor, log_mass_N: Tensor, slots: Sequence[SlotSampling]) -> Tensor | None:
    """[N] float32 log-probabilities of the drawn ids, NaN for rows that did not ask; None when no row did."""
    asked = [slot.params.wants_logprobs for slot in slots]
    if not any(asked):
        return None
    logprobs_N = chosen_logprobs(logits_NV, tokens_N, log_mass_N)
    return logprobs_N.where(torch.tensor(asked, device=logits_NV.device), torch.nan)


def _alternatives(logits_NV: Tensor, log_mass_N: Tensor, slots: Sequence[SlotSampling]) -> tuple[TopTokens | None, ...]:
    """Per row the alternatives it asked for; empty when no row did."""
    asked = [row for row, slot in enumerate(slots) if slot.params.top_n_tokens > 0]
    if not asked:
        return ()
    counts = [slots[row].params.top_n_tokens for row in asked]
    is_all = len(asked) == len(slots)
    tops = top_tokens(logits_NV if is_all else logits_NV[asked], counts, log_mass_N if is_all else log_mass_N[asked])
    found = dict(zip(asked, tops, strict=True))
    return tuple(found.get(row) for row in range(len(slots)))
