"""Samples the next token of every row of a step in one pass: first the stages, then the best id or a draw.

N rows, V vocabulary, S slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from textmill_shard.model.forward_batch import RowScan
from textmill_shard.model.score_changes import FirstPass, ScoreChanges, Temperatures
from textmill_shard.sampling.allowed_ids import AllowedIds
from textmill_shard.sampling.bad_sequences import BadSequences
from textmill_shard.sampling.bias import Bias
from textmill_shard.sampling.count_penalties import CountPenalties
from textmill_shard.sampling.draw import Draw, DrawnIds
from textmill_shard.sampling.grammar_mask import GrammarMask
from textmill_shard.sampling.logprobs import TopDraft, TopTokens, chosen_logprobs, draft_top, finish_top, num_drafted
from textmill_shard.sampling.part_rows import WholeRows
from textmill_shard.sampling.repeated_ngrams import RepeatedNgrams
from textmill_shard.sampling.repetition_penalty import RepetitionPenalty
from textmill_shard.sampling.row_scan import RowScanner, TorchRowScanner
from textmill_shard.sampling.row_selection import RowSelector, SelectedRows, Selection, StageRows, StepRows
from textmill_shard.sampling.stage import SlotText, Stage
from textmill_shard.sampling.stage_order import build_stages
from textmill_shard.sampling.watermark import DEFAULT_KEY, WatermarkKey
from textmill_shard.slots.plan import IdArray
from textmill_shard.slots.sampling_params import SamplingParams

DEFAULT_NUM_CANDIDATES = 1024
_AStage = TypeVar("_AStage")
HostArray: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class SampledRows:
    """The tokens of a step, with one entry per row in the order of the rows. Tensors are on the device of the logits.

    `tokens_N` is int64. `logprobs_N` is float32, NaN for rows that did not ask, and None when no row asked. `top` has
    None for rows that did not ask for alternatives, and is empty when no row asked. `not_finite_N` (bool) marks the
    rows whose logits held a NaN or an infinity; the token of such a row is 0 and means nothing. `stuck_N` (bool) marks
    the rows in which no id is possible, whose tokens mean nothing either; None when no row asked for `allowed_ids`,
    `bad_sequences` or n-grams that are not repeated.
    """

    tokens_N: Tensor
    logprobs_N: Tensor | None
    top: tuple[TopTokens | None, ...]
    not_finite_N: Tensor
    stuck_N: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """What a step samples when no row has to look at more scores than its candidates.

    `open_N` (bool) marks rows that have to look, whose tokens are no draws until `Sampler.settle`; None: no row can be
    among them. The alternatives of `sampled` are missing, because the host makes them of `top`. The other fields are
    what `settle` needs. The logits and the scores of ranks that share a vocabulary are those of this rank's ids.
    """

    sampled: SampledRows
    top: TopDraft | None  # of the rows that asked for alternatives, in their order; None when no row asked
    open_N: Tensor | None
    drawn: DrawnIds | None
    logits_NV: Tensor
    scores_NV: Tensor
    rows: StepRows
    scan: RowScan


@dataclass(frozen=True, slots=True)
class WishPlaces:
    """Where wishes stand in a selection. The wishes for stages stand in front, in the order of the stages."""

    mask: int
    draw: int
    row_mass: int
    top: int
    logprobs: int


class Sampler:
    """Owns the sampling state of the slots, on one device.

    `admit` begins the state of a request. Each step calls `select` once, whose result `wish_upload.py` copies to the
    device, then `sample` once, which changes no state, and `append` once. Tests may change `num_candidates`: any number
    gives tokens of one distribution, but another number gives other tokens.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        device: torch.device,
        num_candidates: int = DEFAULT_NUM_CANDIDATES,
        watermark: WatermarkKey = DEFAULT_KEY,
        scanner: RowScanner | None = None,  # None stands for a TorchRowScanner
    ) -> None:
        self.device = device
        self.grammar_mask = GrammarMask(num_slots=num_slots, device=device)
        self.scanner = scanner or TorchRowScanner()
        self.stages = build_stages(
            num_slots=num_slots, device=device, grammar_mask=self.grammar_mask, watermark=watermark
        )
        self.draw = Draw(num_slots=num_slots, device=device, num_candidates=num_candidates, gumbel=self.scanner.gumbel)
        self._top_n_S = np.zeros(num_slots, dtype=np.int64)  # alternatives
        # A wish and the rows of a step that have the wish stand at one place of their tuples.
        wishes = (
            *(stage.wants for stage in self.stages),
            self.draw.wants,
            self.draw.wants_row_mass,
            _wants_alternatives,
            _wants_logprobs,
        )
        num_stages = len(self.stages)
        mask = self.stages.index(self.grammar_mask)
        # The stages of a first pass, in their order. The other stages change scores by themselves.
        self._repetition, self._counts, self._bias = (
            _stage_of(self.stages, RepetitionPenalty),
            _stage_of(self.stages, CountPenalties),
            _stage_of(self.stages, Bias),
        )
        first = (self._repetition, self._counts, self._bias, self.grammar_mask)
        self._first_places = [self.stages.index(stage) for stage in first]
        self._own_places = sorted(set(range(num_stages)) - set(self._first_places))
        self._limit_places = [
            place
            for place, stage in enumerate(self.stages)
            if isinstance(stage, AllowedIds | BadSequences | RepeatedNgrams)
        ]
        self.wishes = WishPlaces(mask, *range(num_stages, len(wishes)))
        self._selector = RowSelector(wishes, num_slots=num_slots)

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        """Write the state of the request that takes the slot, from this request alone (rule 18)."""
        self._selector.admit(slot, params)
        for stage in self.stages:
            if stage.wants(params):
                stage.admit(slot, params, tokens)
        if self.draw.wants(params):
            self.draw.admit(slot, params, tokens)
        self._top_n_S[slot] = params.top_n_tokens

    def select(self, slots_N: IdArray) -> Selection:
        """Return which rows of a step have which wish, for the slots of the rows that sample."""
        return self._selector.select(slots_N)

    def takes_best(self, selection: Selection) -> bool:
        """Whether every row takes the best id of the model's own scores.

        Every row does so where no row asks for a stage, a draw or alternatives. Rows may ask for log-probabilities.
        """
        return not any(selection[: self.wishes.logprobs])

    def logprob_rows(self, selection: Selection) -> SelectedRows | None:
        """Return the rows that ask for the log-probability of their token, or None."""
        return selection[self.wishes.logprobs]

    def grammar_rows(self, selection: Selection) -> SelectedRows | None:
        """Return the rows that need a mask (`grammar_mask`) before the step samples, or None."""
        return selection[self.wishes.mask]

    def sample(self, logits_NV: Tensor, rows: StepRows, scan: RowScan | None = None) -> SampledRows:
        """Sample one token per row. Changes neither `logits_NV` (float32) nor any state; the caller calls `append`.

        `scan` is the scan of the logits with the normaliser, or None where nobody has scanned the logits yet. Waits for
        the device, to learn whether a row has to look at more scores than its candidates.
        """
        draft = self.draft(logits_NV, rows, scan)
        is_settled = draft.open_N is None or not bool(draft.open_N.any())
        sampled = draft.sampled if is_settled else self.settle(draft)
        if draft.top is None:
            return sampled
        return replace(sampled, top=self.alternatives(draft, *(tensor.cpu().numpy() for tensor in draft.top.tensors)))

    def draft(self, logits_NV: Tensor, rows: StepRows, scan: RowScan | None = None) -> Draft:
        """Launch the work of `sample` and wait for nothing. The caller reads `open_N` with the tokens."""
        top_rows, logprob_rows = rows[self.wishes.top], rows[self.wishes.logprobs]
        wants_mass = top_rows is not None or logprob_rows is not None
        changer = self.scanner.changer if scan is None else None
        changes = None if changer is None else self.changes(rows, len(logits_NV))
        best_N: Tensor | None
        best_ids_NC: Tensor | None = None  # of the logits
        if changer is not None and changes is not None:
            first = changer.first_pass(logits_NV, changes, self._num_candidates(rows, logits_NV, changes))
            scan, scores_NV, best_N = first.scan, first.scores_NV, first.best_N
            drawn = self._draw_rows(scores_NV, rows, first)
            best_ids_NC = None if changes.changes_scores else first.candidates_NC
        else:
            if scan is None:
                scan = self.scanner.scan(logits_NV, wants_mass=wants_mass)
            scores_NV = self._apply_stages(logits_NV, rows)
            drawn = self._draw_rows(scores_NV, rows)
            best_N = self._best(scores_NV, rows, scan if scores_NV is logits_NV else None)
        if drawn is not None:
            tokens_N = self.mix(drawn.tokens_S, best_N, rows)
        else:
            assert best_N is not None
            tokens_N = best_N
        open_N = None if drawn is None else self.open_rows(drawn, rows, scan)
        sampled = self._rate(logits_NV, scores_NV, tokens_N, rows, scan)
        top = None if top_rows is None else self._draft_top(logits_NV, scan, top_rows, best_ids_NC)
        return Draft(sampled, top, open_N, drawn, logits_NV, scores_NV, rows, scan)

    def settle(self, draft: Draft) -> SampledRows:
        """Return what the step samples, after a look at all scores of the open rows. Waits for the device.

        Steps that were launched after the step of the draft change nothing of the result.
        """
        assert draft.drawn is not None
        tokens_S = self.draw.settle(draft.drawn)
        tokens_N = self.mix(tokens_S, draft.sampled.tokens_N, draft.rows)
        return self._rate(draft.logits_NV, draft.scores_NV, tokens_N, draft.rows, draft.scan)

    def _rate(
        self, logits_NV: Tensor, scores_NV: Tensor, tokens_N: Tensor, rows: StepRows, scan: RowScan
    ) -> SampledRows:
        """Return the tokens with what the requests of their rows want to know of them."""
        top_rows, logprob_rows = rows[self.wishes.top], rows[self.wishes.logprobs]
        wants_mass = top_rows is not None or logprob_rows is not None
        tokens_N = tokens_N.masked_fill(scan.not_finite_N, 0)
        stuck_N = None
        if self.has_limits(rows):
            stuck_N = torch.isneginf(scores_NV.gather(1, tokens_N.unsqueeze(-1)).squeeze(-1))
        if not wants_mass:
            return SampledRows(
                tokens_N=tokens_N, logprobs_N=None, top=(), not_finite_N=scan.not_finite_N, stuck_N=stuck_N
            )
        assert scan.log_mass_N is not None
        return SampledRows(
            tokens_N=tokens_N,
            logprobs_N=None if logprob_rows is None else _chosen(logits_NV, tokens_N, scan.log_mass_N, logprob_rows),
            top=(),
            not_finite_N=scan.not_finite_N,
            stuck_N=stuck_N,
        )

    def append(self, rows: StepRows, tokens_N: Tensor) -> None:
        """Take in the tokens (int64, on the device) that the rows of the step sampled."""
        for place, stage in enumerate(self.stages):
            stage_rows = rows[place]
            if stage_rows is not None:
                leaving_slots = stage.append(
                    stage_rows, tokens_N if stage_rows.on_host.is_all else tokens_N[stage_rows.rows_G]
                )
                if len(leaving_slots):
                    self._selector.leave(leaving_slots, place)
        draw_rows = rows[self.wishes.draw]
        if draw_rows is not None:
            self.draw.append(draw_rows)

    def has_limits(self, rows: StepRows) -> bool:
        """Whether a row asks for a stage that may leave no id possible."""
        return any(rows[place] is not None for place in self._limit_places)

    def open_rows(self, drawn: DrawnIds, rows: StepRows, scan: RowScan) -> Tensor | None:
        """Return which rows of a step may draw again, [N] bool; None where no row may."""
        draw_rows = rows[self.wishes.draw]
        if drawn.open_rows is None or draw_rows is None:
            return None
        is_open_S = drawn.open_rows.needs_all_S | drawn.open_rows.needs_tail_S
        if draw_rows.on_host.is_all:
            return is_open_S
        return torch.zeros_like(scan.not_finite_N).index_copy_(0, draw_rows.rows_G, is_open_S)

    def changes(self, rows: StepRows, num_rows: int) -> ScoreChanges | None:
        """Return what a first pass changes. None: a row asks for a stage that no first pass knows."""
        if any(rows[place] is not None for place in self._own_places):
            return None

        def slots_N(place: int) -> Tensor | None:
            stage_rows = rows[place]
            if stage_rows is None or stage_rows.on_host.is_all:
                return None if stage_rows is None else stage_rows.slots_G
            nobody_N = torch.full((num_rows,), -1, dtype=torch.int64, device=self.device)
            return nobody_N.index_copy_(0, stage_rows.rows_G, stage_rows.slots_G)

        seen_N, counted_N, biased_N, masked_N = (slots_N(place) for place in self._first_places)
        mass_rows = rows[self.wishes.row_mass]
        return ScoreChanges(
            repetition=None if seen_N is None else self._repetition.change(seen_N),
            counts=None if counted_N is None else self._counts.change(counted_N),
            bias=None if biased_N is None else self._bias.change(biased_N),
            mask=None if masked_N is None else self.grammar_mask.change(masked_N),
            temperatures=self._temperatures(mass_rows, slots_N(self.wishes.row_mass)),
        )

    def _temperatures(self, mass_rows: StageRows | None, slots_N: Tensor | None) -> Temperatures | None:
        return None if mass_rows is None or slots_N is None else self.draw.temperatures(mass_rows, slots_N)

    def _num_candidates(self, rows: StepRows, logits_NV: Tensor, changes: ScoreChanges) -> int:
        """Return how many best ids of each row draws and alternatives need of a first pass, 0 for none.

        Alternatives are best ids of the model's own scores, which a pass that changes scores does not look for.
        """
        vocab_size = logits_NV.shape[-1]
        draw_rows, top_rows = rows[self.wishes.draw], rows[self.wishes.top]
        num_drawn = 0 if draw_rows is None else self.draw.num_candidates(draw_rows, vocab_size)
        if top_rows is None or changes.changes_scores:
            return num_drawn
        return max(num_drawn, num_drafted(self.top_counts(top_rows), vocab_size))

    def top_counts(self, top_rows: StageRows) -> list[int]:
        """Return the number of alternatives that each of the rows asks for."""
        counts: list[int] = self._top_n_S[top_rows.on_host.slots_G].tolist()
        return counts

    def _apply_stages(self, logits_NV: Tensor, rows: StepRows) -> Tensor:
        """Return scores [N, V] float32: `logits_NV` itself when no row asks for a stage, else a changed copy."""
        scores_NV = logits_NV
        for place, stage in enumerate(self.stages):
            stage_rows = rows[place]
            if stage_rows is not None:
                if scores_NV is logits_NV:
                    scores_NV = logits_NV.clone()
                stage.apply(scores_NV, stage_rows)
        return scores_NV

    def _draw_rows(self, scores_NV: Tensor, rows: StepRows, first: FirstPass | None = None) -> DrawnIds | None:
        """Draw the ids of the rows whose requests draw, by what a first pass has found. None: no row draws."""
        draw_rows, mass_rows = rows[self.wishes.draw], rows[self.wishes.row_mass]
        if draw_rows is None:
            return None
        log_mass_S, known_SC = (None, None) if first is None else (first.tempered_mass_N, first.candidates_NC)
        if draw_rows.on_host.is_all:
            return self.draw.choose(scores_NV, draw_rows, mass_rows, log_mass_S, known_SC)
        log_mass_S = None if log_mass_S is None else log_mass_S[draw_rows.rows_G]
        known_SC = None if known_SC is None else known_SC[draw_rows.rows_G]
        return self.draw.choose(scores_NV[draw_rows.rows_G], draw_rows, mass_rows, log_mass_S, known_SC)

    def _best(self, scores_NV: Tensor, rows: StepRows, scan: RowScan | None) -> Tensor | None:
        """Return the best id of each row, [N] int64; None where all rows draw.

        `scan` is the scan of the scores, or None where there is none yet.
        """
        draw_rows = rows[self.wishes.draw]
        if draw_rows is not None and draw_rows.on_host.is_all:
            return None
        return (scan or self.scanner.scan(scores_NV, wants_mass=False)).best_N

    def mix(self, tokens_S: Tensor, others_N: Tensor | None, rows: StepRows) -> Tensor:
        """Return one id per row: those of the rows that draw, and `others_N` for the other rows."""
        draw_rows = rows[self.wishes.draw]
        assert draw_rows is not None
        if draw_rows.on_host.is_all:
            return tokens_S
        assert others_N is not None
        return others_N.index_copy(0, draw_rows.rows_G, tokens_S)

    def alternatives(
        self,
        draft: Draft,
        values_NK: HostArray,
        ids_NK: HostArray,
        logprobs_NK: HostArray,
        *,
        whole: WholeRows | None = None,
    ) -> tuple[TopTokens | None, ...]:
        """Return for each row of a step the alternatives that its request asked for, or None.

        The arrays are the tensors of `draft.top` on the host. `whole` has the rows of `tied_rows`, where ranks share a
        vocabulary.
        """
        top_rows = draft.rows[self.wishes.top]
        assert draft.top is not None
        assert top_rows is not None
        by_row = None
        if whole is not None:
            place_of_row = {row: place for place, row in enumerate(top_rows.on_host.rows_G.tolist())}
            by_row = {
                place_of_row[row]: logits_V
                for row, logits_V in zip(whole.rows_O.tolist(), whole.logits_OV, strict=True)
                if row in place_of_row
            }
        tops = finish_top(draft.top, values_NK, ids_NK, logprobs_NK, logits_by_row=by_row)
        if top_rows.on_host.is_all:
            return tops
        found = dict(zip(top_rows.on_host.rows_G.tolist(), tops, strict=True))
        return tuple(found.get(row) for row in range(len(draft.sampled.tokens_N)))

    def _draft_top(self, logits_NV: Tensor, scan: RowScan, top_rows: StageRows, best_ids_NC: Tensor | None) -> TopDraft:
        counts, log_mass_N = self.top_counts(top_rows), scan.log_mass_N
        assert log_mass_N is not None
        if top_rows.on_host.is_all:
            return draft_top(logits_NV, counts, log_mass_N, best_ids_NC)
        rows_G = top_rows.rows_G
        known_GC = None if best_ids_NC is None else best_ids_NC[rows_G]
        return draft_top(logits_NV[rows_G], counts, log_mass_N[rows_G], known_GC)


def _stage_of(stages: Sequence[Stage], kind: type[_AStage]) -> _AStage:
    return next(stage for stage in stages if isinstance(stage, kind))


def _wants_alternatives(params: SamplingParams) -> bool:
    return params.top_n_tokens > 0


def _wants_logprobs(params: SamplingParams) -> bool:
    return params.wants_logprobs


def _chosen(logits_NV: Tensor, tokens_N: Tensor, log_mass_N: Tensor, logprob_rows: StageRows) -> Tensor:
    """Return the log-probabilities of the sampled ids, [N] float32, with NaN for rows that did not ask."""
    return keep_asked(chosen_logprobs(logits_NV, tokens_N, log_mass_N), logprob_rows)


def keep_asked(logprobs_N: Tensor, logprob_rows: StageRows) -> Tensor:
    """Return the log-probabilities, with NaN for rows that did not ask. May write to `logprobs_N`."""
    if logprob_rows.on_host.is_all:
        return logprobs_N
    is_asked_N = torch.zeros_like(logprobs_N, dtype=torch.bool).index_fill_(0, logprob_rows.rows_G, True)
    return logprobs_N.masked_fill_(~is_asked_N, torch.nan)
