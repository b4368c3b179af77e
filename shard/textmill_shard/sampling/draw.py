"""Draws one id of each row: temperature, candidates, filters, noise.

S rows, V vocabulary, C candidates (the best scores of a row).

A row draws by the Gumbel-max trick: the row takes the id whose log-weight plus noise is largest, where the noise is a
function of request seed, position and token id. Only the candidates get noise at first. The other ids of the row, its
tail, stay possible: where no filter of the request cuts the tail off, the tail takes part as one more candidate, with
its exact mass and noise of its own. When the tail wins, or when the set that a filter keeps may reach beyond the
candidates, the draw of that row alone looks at all its scores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from textmill_shard.model.score_changes import Temperatures
from textmill_shard.sampling import noise
from textmill_shard.sampling.candidates import best_scores
from textmill_shard.sampling.part_rows import Candidates
from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.sampling.stage import SlotText
from textmill_shard.sampling.truncation import Filters, Limits, RowTotals, needs_row_mass, truncate
from textmill_shard.slots.sampling_params import SamplingParams

Noise: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
SPARE_CANDIDATES = 16  # beyond the largest top-k, so that the cut and the ties at the cut lie among the candidates
LEAST_SCORE = -1e4  # its exponential is 0 in float32
FULL_ROWS = 4  # rows whose scores are all looked at together


@dataclass(frozen=True, slots=True)
class OpenRows:
    """The rows whose draw may have to look at more scores than the candidates, and what that look needs."""

    needs_all_S: Tensor  # bool: the set that a filter keeps may reach beyond the candidates
    needs_tail_S: Tensor  # bool: the tail has won
    scores_SV: Tensor | None  # None: ranks that share a vocabulary have the scores in parts
    candidates_SC: Tensor  # int64
    rows: "RowStates"

    def at(self, places: Tensor, scores_OV: Tensor) -> "OpenRows":
        """Return some of the rows with all of their scores."""
        return OpenRows(
            self.needs_all_S[places],
            self.needs_tail_S[places],
            scores_OV,
            self.candidates_SC[places],
            self.rows.at(places),
        )


@dataclass(frozen=True, slots=True)
class DrawnIds:
    """One id per row. The ids of the rows that `open_rows` marks mean nothing until `Draw.settle`."""

    tokens_S: Tensor  # int64
    places_S1: Tensor  # int64: where the ids stand among the candidates
    open_rows: OpenRows | None  # None: no row can be open


@dataclass(frozen=True, slots=True)
class RowStates:
    """What the draws of some rows depend on beside the scores, on the device, as of the launch of their step."""

    seed_words_S2: Tensor  # int64
    positions_S: Tensor  # int64: output tokens before the drawn one
    temperatures_S1: Tensor  # float32
    limits: Limits
    wants_entropy: bool  # whether a row may need the entropy of its scores
    gumbel: Noise

    def at(self, places: Tensor) -> "RowStates":
        """Return the states of some of the rows."""
        return RowStates(
            seed_words_S2=self.seed_words_S2[places],
            positions_S=self.positions_S[places],
            temperatures_S1=self.temperatures_S1[places],
            limits=self.limits.at(places),
            wants_entropy=self.wants_entropy,
            gumbel=self.gumbel,
        )

    def noise(self, ids_SC: Tensor) -> Tensor:
        """Return Gumbel noise [S, C] float64 for these ids."""
        return self.gumbel(self.seed_words_S2, self.positions_S, ids_SC)


class Draw:
    """Draws ids, and owns what a draw depends on besides the scores: seed, position, temperature and filters.

    This state lies on the device, in arrays by slot.
    """

    def __init__(self, *, num_slots: int, device: torch.device, num_candidates: int, gumbel: Noise) -> None:
        """`gumbel` makes the noise of `noise.gumbel` on the device."""
        self._gumbel = gumbel
        self._num_candidates = num_candidates
        self._seed_words_S2 = torch.zeros(num_slots, 2, dtype=torch.int64, device=device)
        self._positions_S = torch.zeros(num_slots, dtype=torch.int64, device=device)  # output tokens so far
        self._temperatures_S1 = torch.ones(num_slots, 1, dtype=torch.float32, device=device)
        self._filters = Filters(num_slots=num_slots, device=device)
        self._widths_S = np.zeros(num_slots, dtype=np.int64)  # candidates that a request's top-k leaves
        self._wants_entropy_S = np.zeros(num_slots, dtype=bool)

    def wants(self, params: SamplingParams) -> bool:
        """Whether this request draws its tokens."""
        return params.do_sample

    def wants_row_mass(self, params: SamplingParams) -> bool:
        """Whether the draws of this request need the total of the exponentials of the whole row."""
        return params.do_sample and needs_row_mass(params)

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        """Write the state of the request that takes the slot."""
        device = self._seed_words_S2.device
        self._seed_words_S2[slot] = noise.seed_words([params.seed], device)[0]
        self._positions_S[slot] = len(tokens.output_ids)
        self._temperatures_S1[slot] = params.temperature
        self._filters.admit(slot, params)
        self._widths_S[slot] = params.top_k or self._num_candidates
        self._wants_entropy_S[slot] = params.typical_p < 1.0 and needs_row_mass(params)

    def append(self, rows: StageRows) -> None:
        """Move the positions of these rows on by one, because each of them has a new token."""
        self._positions_S[rows.slots_G] += 1

    def temperatures(self, mass_rows: StageRows, slots_N: Tensor) -> Temperatures | None:
        """Return what a first pass needs to find the totals of `mass_rows`; `slots_N` (int64) has -1 for other rows.

        None where a row needs more than the normaliser, which a first pass does not find.
        """
        if self._wants_entropy_S[mass_rows.on_host.slots_G].any():
            return None
        return Temperatures(slots_N, self._temperatures_S1.squeeze(-1))

    def num_candidates(self, rows: StageRows, vocab_size: int) -> int:
        """Return the number of candidates that `choose` looks at.

        The number is smaller where each row has a top-k, because such a row draws the same id from any number of
        candidates that holds its top-k and their ties.
        """
        widest = int(self._widths_S[rows.on_host.slots_G].max()) + SPARE_CANDIDATES
        return min(self._num_candidates, widest, vocab_size)

    def choose(
        self,
        scores_SV: Tensor,
        rows: StageRows,
        mass_rows: StageRows | None,
        log_mass_S: Tensor | None = None,
        known_SC: Tensor | None = None,
    ) -> DrawnIds:
        """Draw one id per row from the candidates. Waits for nothing on the device.

        `scores_SV` float32 may hold minus infinity for impossible ids. `mass_rows` are those of the rows whose
        requests want the total of the whole row (`wants_row_mass`), or None where there is no such row. `log_mass_S`
        has these totals where a first pass has found them (`Temperatures`); other rows have any number. `known_SC`
        (int64) are best ids of each row, the best first, where a first pass has found some.
        """
        vocab_size = scores_SV.shape[-1]
        num_candidates = self.num_candidates(rows, vocab_size)
        best_SC, ids_SC = best_scores(scores_SV, num_candidates, known_SC)
        states = self._states(rows, mass_rows)
        if log_mass_S is not None:
            log_mass_R = log_mass_S.double()
            totals = RowTotals(log_mass_R=log_mass_R, entropy_R=torch.zeros_like(log_mass_R))
        else:
            totals = _row_totals(scores_SV, best_SC[:, :1], states, _places_of(mass_rows, rows))
        return _choose_among(
            best_SC, ids_SC, states, totals, is_whole=num_candidates == vocab_size, scores_SV=scores_SV
        )

    def choose_joined(self, found: Candidates, rows: StageRows, mass_rows: StageRows | None, *, size: int) -> DrawnIds:
        """Do what `choose` does, with what the ranks that share a vocabulary of `size` ids have found of the rows."""
        best = found.best
        return _choose_among(
            best.scores,
            best.ids,
            self._states(rows, mass_rows),
            RowTotals(log_mass_R=found.log_mass_G, entropy_R=found.entropy_G),
            is_whole=best.ids.shape[-1] == size,
            scores_SV=None,
        )

    def part_sums(
        self, scores_SV: Tensor, best_S1: Tensor, rows: StageRows, mass_rows: StageRows | None
    ) -> tuple[Tensor, Tensor]:
        """Return the sums of `PartCandidates` for a rank's part of the scores; `best_S1` has the best of the part."""
        masses_S = torch.zeros(len(scores_SV), dtype=torch.float32, device=scores_SV.device)
        surprises_S = torch.zeros_like(masses_S)
        places = _places_of(mass_rows, rows)
        if places is not None:
            # In a part without a possible id all weights are 0.
            base_S1 = best_S1.masked_fill(torch.isinf(best_S1), 0.0)
            sums = _weigh(scores_SV, base_S1, self._states(rows, mass_rows), places)
            masses_S[places], surprises_S[places] = sums.masses_S, sums.surprises_S
        return masses_S, surprises_S

    def temperatures_of(self, rows: StageRows) -> Tensor:
        """Return the temperatures of these rows, [S, 1] float32."""
        return self._temperatures_S1[rows.slots_G]

    def settle(self, drawn: DrawnIds) -> Tensor:
        """Return the ids, [S] int64, after a look at all scores of the open rows, which are mostly none.

        The host reads which rows are open, and waits for the device. Later draws of the slots may have been launched
        already, because the states of the rows are those of this draw.
        """
        open_rows = drawn.open_rows
        if open_rows is None:
            return drawn.tokens_S
        tokens_S = drawn.tokens_S.clone()
        scores_SV, ids_SC, rows = open_rows.scores_SV, open_rows.candidates_SC, open_rows.rows
        assert scores_SV is not None, "rows of parts are settled with scores that were laid together"
        for places in _groups(open_rows.needs_all_S):
            tokens_S[places] = _choose_full(scores_SV[places], rows.at(places))
        for places in _groups(open_rows.needs_tail_S):
            tokens_S[places] = _choose_beyond(scores_SV[places], ids_SC[places], rows.at(places))
        return tokens_S

    def _states(self, rows: StageRows, mass_rows: StageRows | None) -> RowStates:
        slots_S = rows.slots_G
        wants_entropy = mass_rows is not None and bool(self._wants_entropy_S[mass_rows.on_host.slots_G].any())
        return RowStates(
            seed_words_S2=self._seed_words_S2[slots_S],
            positions_S=self._positions_S[slots_S],
            temperatures_S1=self._temperatures_S1[slots_S],
            limits=self._filters.limits(rows),
            wants_entropy=wants_entropy,
            gumbel=self._gumbel,
        )


def _choose_among(
    best_SC: Tensor,
    ids_SC: Tensor,
    states: RowStates,
    totals: RowTotals,
    *,
    is_whole: bool,
    scores_SV: Tensor | None,
) -> DrawnIds:
    """Draw one id per row from its candidates, the best first. `is_whole`: they are all ids of the vocabulary."""
    limits = states.limits
    log_weights_SC = ((best_SC - best_SC[:, :1]) / states.temperatures_S1).double()
    kept_scores = truncate(log_weights_SC, limits, totals, is_whole=is_whole)
    noisy_SC = log_weights_SC + states.noise(ids_SC)
    noisy_SC = noisy_SC.masked_fill(~kept_scores.keep_RC, -torch.inf)
    winner_S1 = noisy_SC.argmax(-1, keepdim=True)
    tokens_S = ids_SC.gather(-1, winner_S1).squeeze(-1)
    if is_whole:
        return DrawnIds(tokens_S, winner_S1, None)
    tail_noise_S = states.noise(torch.full_like(ids_SC[:, :1], noise.TAIL_ID)).squeeze(-1)
    # When the last candidate is impossible, the whole tail is. Rounding must not leave mass in such a tail.
    log_tail_S = _log_difference(totals.log_mass_R, log_weights_SC.logsumexp(-1))
    log_tail_S = log_tail_S.masked_fill(torch.isinf(log_weights_SC[:, -1]), -torch.inf)
    is_open_S = ~limits.is_truncated_R
    tail_wins_S = is_open_S & (log_tail_S + tail_noise_S > noisy_SC.gather(-1, winner_S1).squeeze(-1))
    open_rows = OpenRows(~(is_open_S | kept_scores.fits_R), tail_wins_S, scores_SV, ids_SC, states)
    return DrawnIds(tokens_S, winner_S1, open_rows)


def _choose_full(scores_SV: Tensor, rows: RowStates) -> Tensor:
    """Draw [S] ids from all scores of the rows, for filters that may keep more ids than the candidates."""
    sorted_SV, ids_SV = scores_SV.sort(dim=-1, descending=True)
    highest_S1 = sorted_SV[:, :1]
    log_weights_SV = ((sorted_SV - highest_S1) / rows.temperatures_S1).double()
    totals = _row_totals(scores_SV, highest_S1, rows, slice(None))
    kept_scores = truncate(log_weights_SV, rows.limits, totals, is_whole=True)
    noisy_SV = log_weights_SV + rows.noise(ids_SV)
    winner_S1 = noisy_SV.masked_fill(~kept_scores.keep_RC, -torch.inf).argmax(-1, keepdim=True)
    return ids_SV.gather(-1, winner_S1).squeeze(-1)


def _choose_beyond(scores_SV: Tensor, candidates_SC: Tensor, rows: RowStates) -> Tensor:
    """Draw [S] ids from the tails of rows whose tail has won.

    The ids of a tail have independent noise, because no draw has used the noise of these ids at this position.
    """
    rest_SV = scores_SV.scatter(-1, candidates_SC, -torch.inf)
    log_weights_SV = ((rest_SV - rest_SV.amax(-1, keepdim=True)) / rows.temperatures_S1).double()
    ids_SV = torch.arange(scores_SV.shape[-1], device=scores_SV.device).expand_as(scores_SV)
    return (log_weights_SV + rows.noise(ids_SV)).argmax(-1)


def _places_of(mass_rows: StageRows | None, rows: StageRows) -> slice | Tensor | None:
    """Return where the rows that need the totals of the whole row stand among the rows; None where there is none."""
    if mass_rows is None or not len(mass_rows.on_host.rows_G):
        return None
    if len(mass_rows.on_host.rows_G) == len(rows.on_host.rows_G):
        return slice(None)
    return torch.searchsorted(rows.rows_G, mass_rows.rows_G)


def _row_totals(scores_SV: Tensor, highest_S1: Tensor, rows: RowStates, places: slice | Tensor | None) -> RowTotals:
    """Return the totals of the whole rows for the rows at `places`, and 0 for the other rows."""
    log_mass_S = torch.zeros(len(scores_SV), dtype=torch.float64, device=scores_SV.device)
    entropy_S = torch.zeros_like(log_mass_S)
    if places is None:
        return RowTotals(log_mass_R=log_mass_S, entropy_R=entropy_S)
    sums = _weigh(scores_SV, highest_S1, rows, places)
    mass_S = sums.masses_S.double()
    log_mass_S[places] = mass_S.log()
    if rows.wants_entropy:
        entropy_S[places] = mass_S.log() - sums.surprises_S.double() / mass_S
    return RowTotals(log_mass_R=log_mass_S, entropy_R=entropy_S)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over the weights of rows, float32: of the weights, and of each weight times its logarithm."""

    masses_S: Tensor
    surprises_S: Tensor  # 0 where no row needs the entropy


def _weigh(scores_SV: Tensor, highest_S1: Tensor, rows: RowStates, places: slice | Tensor) -> _Sums:
    """Add up the weights of the rows at `places`."""
    # The second operation and the later ones work in place, because fresh memory for [S, V] costs more time than
    # the arithmetic.
    log_weights_SV = scores_SV[places] - highest_S1[places]
    log_weights_SV /= rows.temperatures_S1[places]
    weights_SV = log_weights_SV.exp() if rows.wants_entropy else log_weights_SV.exp_()
    masses_S = weights_SV.sum(-1)
    if not rows.wants_entropy:
        return _Sums(masses_S, torch.zeros_like(masses_S))
    # A weight of 0 may have a score of minus infinity; the clamp makes their product 0 instead of NaN.
    return _Sums(masses_S, weights_SV.mul_(log_weights_SV.clamp_(min=LEAST_SCORE)).sum(-1))


def _groups(is_marked_S: Tensor) -> list[Tensor]:
    """Return the marked places in groups of at most FULL_ROWS.

    The groups are small, because the draw from a whole row of a large vocabulary takes some ten megabytes.
    """
    places = is_marked_S.nonzero().flatten()
    return [places[start : start + FULL_ROWS] for start in range(0, len(places), FULL_ROWS)]


def _log_difference(log_whole_S: Tensor, log_part_S: Tensor) -> Tensor:
    """Return log(exp(whole) - exp(part)), which is minus infinity where rounding makes the parts equal."""
    return log_whole_S + torch.log1p(-(log_part_S - log_whole_S).clamp(max=0.0).exp())
