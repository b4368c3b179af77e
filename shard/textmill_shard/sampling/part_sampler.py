"""Samples the rows of a step where ranks share a vocabulary, so that no rank has whole rows of scores.

Every rank has the sampling state of the slots. Of the scores of its own ids each rank gives what `part_rows.py` says,
in one exchange. Rank 0 joins the gifts of all ranks, draws, and tells the other ranks the tokens. A row for which that
does not suffice is laid together whole.
"""

# N rows, V vocabulary (in GivenPart the ids of this rank), G rows that draw, C candidates, H rows with alternatives,
# K best logits, P ranks, W words, O rows that are laid together, D of these that draw

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from textmill_shard.model.forward_batch import RowScan
from textmill_shard.model.score_changes import FirstPass
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.sampling.draw import DrawnIds
from textmill_shard.sampling.logprobs import TopDraft, num_drafted, tied_rows
from textmill_shard.sampling.part_rows import (
    BestScores,
    JoinedRows,
    PartCandidates,
    PartRows,
    PartSizes,
    WholeRows,
    best_of_part,
    join_parts,
    pack,
)
from textmill_shard.sampling.row_selection import StageRows, StepRows
from textmill_shard.sampling.sampler import Draft, HostArray, SampledRows, Sampler, keep_asked
from textmill_shard.slots.plan import IdArray


@dataclass(frozen=True, slots=True)
class GivenPart:
    """A rank's part of the scores of a step, and the words that the rank sends.

    `sizes` and `may_look` are equal on every rank. `may_look` says that rank 0 may have to see a row whole.
    """

    logits_NV: Tensor
    scores_NV: Tensor  # the logits themselves where no request changes scores
    rows: StepRows
    sizes: PartSizes
    words_W: Tensor  # int32
    may_look: bool


class PartSampler:
    """One rank's side of the sampling. All ranks call `give`, `exchange` and `join_rows` in equal order."""

    def __init__(self, sampler: Sampler, vocabulary: SharedVocabulary) -> None:
        self._sampler = sampler
        self._vocabulary = vocabulary

    def give(self, part_NV: Tensor, rows: StepRows, scan: RowScan | None = None) -> GivenPart:
        """Find what this rank sends of a step. Waits for nothing on the device, and changes no state.

        `part_NV` are the logits (float32) of this rank's ids. `scan` is the scan of the part with the normaliser, or
        None where nobody has scanned the part yet.
        """
        sampler, vocabulary = self._sampler, self._vocabulary
        draw_rows, top_rows = rows[sampler.wishes.draw], rows[sampler.wishes.top]
        num_candidates, num_best = self._num_candidates(draw_rows), self._num_best(top_rows)
        # The stages that rows ask for decide, because every rank has to send as much.
        changes_scores = any(rows[place] is not None for place in range(len(sampler.stages)))
        changer = sampler.scanner.changer if scan is None else None
        changes = None if changer is None else sampler.changes(rows, len(part_NV))
        first = None
        if changer is not None and changes is not None:
            own = changes.within(vocabulary.first_id, vocabulary.num_ids)
            wanted = num_candidates if changes_scores else max(num_candidates, num_best)
            first = changer.first_pass(part_NV, own, min(wanted, vocabulary.num_ids))
            scan, scores_NV, best_N = first.scan, first.scores_NV, first.best_N
        else:
            scan = scan or sampler.scanner.scan(part_NV, wants_mass=True)
            scores_NV, best_N = part_NV, scan.best_N
            if changes_scores:
                scores_NV = self._changed(part_NV, rows)
                best_N = sampler.scanner.scan(scores_NV, wants_mass=False).best_N
        best_N = best_N.clamp(0, vocabulary.num_ids - 1)  # that of a row with NaN means nothing
        assert scan.log_mass_N is not None
        candidates, top = None, None
        if draw_rows is not None:
            candidates = self._candidates(scores_NV, rows, draw_rows, num_candidates, first)
            if changes_scores:
                places_GC = candidates.best.ids - vocabulary.first_id
                candidates = replace(candidates, logits_GC=_rows_of(part_NV, draw_rows).gather(1, places_GC))
        if top_rows is not None:
            known_HC = None if changes_scores else _known(first, top_rows)
            top = best_of_part(_rows_of(part_NV, top_rows), num_best, vocabulary, known_HC)
        part = PartRows(
            best_N=best_N + vocabulary.first_id,
            scores_N=_at(scores_NV, best_N),
            logits_N=_at(part_NV, best_N) if changes_scores else None,
            log_mass_N=scan.log_mass_N,
            not_finite_N=scan.not_finite_N,
            candidates=candidates,
            top=top,
        )
        sizes = PartSizes(
            num_rows=len(part_NV),
            num_drawn=0 if draw_rows is None else len(draw_rows.on_host.rows_G),
            num_candidates=min(num_candidates, vocabulary.most_ids),
            num_rated=0 if top_rows is None else len(top_rows.on_host.rows_G),
            num_best=min(num_best, vocabulary.most_ids),
            changes_scores=changes_scores,
        )
        size = vocabulary.vocab_size
        may_look = 0 < num_candidates < size or 0 < num_best < size
        return GivenPart(part_NV, scores_NV, rows, sizes, pack(part.tensors), may_look)

    def exchange(self, given: GivenPart) -> Tensor:
        """Give the words to the other ranks, and return those of all ranks, [P, W] int32."""
        return self._vocabulary.gather(given.words_W)

    def join(self, given: GivenPart, words_PW: Tensor) -> JoinedRows:
        """Return what the words of all ranks make together. `given` is this rank's gift."""
        draw_rows = given.rows[self._sampler.wishes.draw]
        return join_parts(
            words_PW,
            given.sizes,
            num_candidates=self._num_candidates(draw_rows),
            num_best=self._num_best(given.rows[self._sampler.wishes.top]),
            temperatures_G1=None if draw_rows is None else self._sampler.draw.temperatures_of(draw_rows),
        )

    def draft(self, given: GivenPart, joined: JoinedRows, rows: StepRows) -> Draft:
        """Do what `Sampler.draft` does, with joined rows. `rows` are those of `joined`."""
        sampler, scan = self._sampler, joined.scan
        draw_rows, top_rows = rows[sampler.wishes.draw], rows[sampler.wishes.top]
        tokens_N, scores_N, logits_N = scan.best_N, joined.scores_N, joined.logits_N
        drawn, open_N, found = None, None, joined.candidates
        if draw_rows is not None and found is not None:
            size = self._vocabulary.vocab_size
            drawn = sampler.draw.choose_joined(found, draw_rows, rows[sampler.wishes.row_mass], size=size)
            tokens_N = sampler.mix(drawn.tokens_S, tokens_N, rows)
            scores_N = sampler.mix(_at(found.best.scores, drawn.places_S1.squeeze(1)), scores_N, rows)
            logits_N = sampler.mix(_at(found.logits_GC, drawn.places_S1.squeeze(1)), logits_N, rows)
            open_N = sampler.open_rows(drawn, rows, scan)
        assert scan.log_mass_N is not None
        logprob_rows = rows[sampler.wishes.logprobs]
        sampled = SampledRows(
            tokens_N=tokens_N.masked_fill(scan.not_finite_N, 0),
            logprobs_N=None if logprob_rows is None else keep_asked(logits_N - scan.log_mass_N, logprob_rows),
            top=(),
            not_finite_N=scan.not_finite_N,
            stuck_N=torch.isneginf(scores_N) if sampler.has_limits(rows) else None,
        )
        top = None
        if top_rows is not None and joined.top is not None:
            top = self._draft_top(joined.top, _rows_of(scan.log_mass_N, top_rows), sampler.top_counts(top_rows))
        return Draft(sampled, top, open_N, drawn, given.logits_NV, given.scores_NV, rows, scan)

    def tied_rows(self, draft: Draft, values_HK: HostArray) -> IdArray:
        """Return the rows of a step whose alternatives need whole rows, from the first tensor of `draft.top`."""
        top_rows = draft.rows[self._sampler.wishes.top]
        assert draft.top is not None
        assert top_rows is not None
        tied: IdArray = top_rows.on_host.rows_G[tied_rows(draft.top, values_HK)]
        return tied

    def join_rows(self, given: GivenPart, rows_O: IdArray) -> WholeRows:
        """Lay rows of a step together, with all ranks. `rows_O` are at least one index into the N rows, rising."""
        places = torch.from_numpy(rows_O).to(given.logits_NV.device)
        logits_OV = given.logits_NV[places]
        if given.scores_NV is given.logits_NV and not given.sizes.changes_scores:
            whole_OV = self._vocabulary.join_rows(logits_OV)
            return WholeRows(rows_O, whole_OV, whole_OV)
        both_OV = self._vocabulary.join_rows(torch.cat([logits_OV, given.scores_NV[places]]))
        return WholeRows(rows_O, both_OV[: len(rows_O)], both_OV[len(rows_O) :])

    def settle(self, draft: Draft, whole: WholeRows) -> SampledRows:
        """Return what the step samples, after a look at whole rows, among which are all open rows. Waits."""
        sampled, drawn, draw_rows = draft.sampled, draft.drawn, draft.rows[self._sampler.wishes.draw]
        if drawn is None or drawn.open_rows is None or draw_rows is None:
            return sampled
        rows_D = np.intersect1d(whole.rows_O, draw_rows.on_host.rows_G)
        places = (
            np.searchsorted(draw_rows.on_host.rows_G, rows_D),
            np.searchsorted(whole.rows_O, rows_D),
            rows_D,
        )
        drawn_D, whole_D, steps_D = (torch.from_numpy(place).to(sampled.tokens_N.device) for place in places)
        scores_DV = whole.scores_OV[whole_D]
        again = DrawnIds(drawn.tokens_S[drawn_D], drawn.places_S1[drawn_D], drawn.open_rows.at(drawn_D, scores_DV))
        tokens_D = self._sampler.draw.settle(again).masked_fill(sampled.not_finite_N[steps_D], 0)
        logprobs_N, stuck_N = sampled.logprobs_N, sampled.stuck_N
        if logprobs_N is not None:
            assert draft.scan.log_mass_N is not None
            logprobs_D = _at(whole.logits_OV[whole_D], tokens_D) - draft.scan.log_mass_N[steps_D]
            logprobs_D = logprobs_D.masked_fill(torch.isnan(logprobs_N[steps_D]), torch.nan)  # rows that did not ask
            logprobs_N = logprobs_N.index_copy(0, steps_D, logprobs_D)
        if stuck_N is not None:
            stuck_N = stuck_N.index_copy(0, steps_D, torch.isneginf(_at(scores_DV, tokens_D)))
        tokens_N = sampled.tokens_N.index_copy(0, steps_D, tokens_D)
        return replace(sampled, tokens_N=tokens_N, logprobs_N=logprobs_N, stuck_N=stuck_N)

    def _num_candidates(self, draw_rows: StageRows | None) -> int:
        """Return the number of candidates of a whole row; 0 where no row draws."""
        if draw_rows is None:
            return 0
        return self._sampler.draw.num_candidates(draw_rows, self._vocabulary.vocab_size)

    def _num_best(self, top_rows: StageRows | None) -> int:
        """Return the number of best logits of a whole row; 0 where no row asks for alternatives."""
        return 0 if top_rows is None else num_drafted(self._sampler.top_counts(top_rows), self._vocabulary.vocab_size)

    def _changed(self, part_NV: Tensor, rows: StepRows) -> Tensor:
        """Return the scores that the stages make of a part.

        The stages write scores by token id, so they change rows of the whole width, in which the ids of other ranks
        are impossible.
        """
        vocabulary = self._vocabulary
        own = slice(vocabulary.first_id, vocabulary.first_id + vocabulary.num_ids)
        wide_NV = part_NV.new_full((len(part_NV), vocabulary.vocab_size), -torch.inf)
        wide_NV[:, own] = part_NV
        for place, stage in enumerate(self._sampler.stages):
            stage_rows = rows[place]
            if stage_rows is not None:
                stage.apply(wide_NV, stage_rows)
        return wide_NV[:, own].contiguous()

    def _candidates(
        self, scores_NV: Tensor, rows: StepRows, draw_rows: StageRows, num_candidates: int, first: FirstPass | None
    ) -> PartCandidates:
        """Return the candidates of this rank's part, without their logits."""
        scores_GV = _rows_of(scores_NV, draw_rows)
        best = best_of_part(scores_GV, num_candidates, self._vocabulary, _known(first, draw_rows))
        if first is not None and first.tempered_mass_N is not None:
            masses_G = _rows_of(first.tempered_mass_N, draw_rows).exp()
            return PartCandidates(best, None, masses_G, torch.zeros_like(masses_G))
        mass_rows = rows[self._sampler.wishes.row_mass]
        return PartCandidates(
            best, None, *self._sampler.draw.part_sums(scores_GV, best.scores[:, :1], draw_rows, mass_rows)
        )

    def _draft_top(self, best: BestScores, log_mass_H: Tensor, counts: list[int]) -> TopDraft:
        logprobs_HK = best.scores - log_mass_H.unsqueeze(-1)
        return TopDraft(best.scores, best.ids, logprobs_HK, counts, self._vocabulary.vocab_size, None, log_mass_H)


def _known(first: FirstPass | None, rows: StageRows) -> Tensor | None:
    """Return the places of the best scores of some rows, where a first pass has found them."""
    return None if first is None or first.candidates_NC is None else _rows_of(first.candidates_NC, rows)


def _rows_of(tensor_N: Tensor, rows: StageRows) -> Tensor:
    """Return the values of some rows, of a tensor with one entry per row of the step."""
    return tensor_N if rows.on_host.is_all else tensor_N[rows.rows_G]


def _at(scores_NV: Tensor, places_N: Tensor) -> Tensor:
    """Return one score of each row, [N]."""
    return scores_NV.gather(1, places_N.unsqueeze(1)).squeeze(1)
