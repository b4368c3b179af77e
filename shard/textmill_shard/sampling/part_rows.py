"""What ranks that share a vocabulary send of the rows of a step, and what their parts make together.

Of each row a rank sends the best id of its part, with its score, and facts of the whole part. Of a row that draws, the
rank also sends the best scores of its part, because the best scores of the whole row are among them. Of a row that
asks for alternatives, the rank sends the best logits. Everything travels in one exchange of words of 32 bits.
"""

# N rows, G rows that draw, C candidates of a row, H rows that ask for alternatives, K best logits of a row, P ranks,
# W words

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from textmill_shard.model.forward_batch import RowScan
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.sampling.candidates import best_scores
from textmill_shard.slots.plan import IdArray

_LEAST = -1e4  # its exponential is 0


@dataclass(frozen=True, slots=True)
class PartSizes:
    """How much the ranks send of a step, which depends on the requests of the rows alone and is equal on every rank."""

    num_rows: int
    num_drawn: int
    num_candidates: int  # of each row that draws; 0 where no row draws
    num_rated: int  # rows that ask for alternatives
    num_best: int  # of each of these rows
    changes_scores: bool  # whether a request changes the scores of its row, so that scores and logits differ

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the tensors of `PartRows.tensors`."""
        rows = (self.num_rows,)
        shapes: list[tuple[int, ...]] = [rows, rows, rows, rows]
        if self.changes_scores:
            shapes.append(rows)
        if self.num_drawn:
            candidates = (self.num_drawn, self.num_candidates)
            shapes += [candidates, candidates]
            if self.changes_scores:
                shapes.append(candidates)
            shapes += [(self.num_drawn,), (self.num_drawn,)]
        if self.num_rated:
            shapes += [(self.num_rated, self.num_best)] * 2
        return tuple(shapes)


@dataclass(frozen=True, slots=True)
class WholeRows:
    """Rows of a step that the ranks have laid together, because what has travelled of them does not suffice."""

    rows_O: IdArray  # indices into the N rows, rising
    logits_OV: Tensor
    scores_OV: Tensor


@dataclass(frozen=True, slots=True)
class BestScores:
    """The best scores of some rows, the best first. Places behind the last id of a rank have the score -inf."""

    ids: Tensor  # int64, of the whole vocabulary
    scores: Tensor  # float32


@dataclass(frozen=True, slots=True)
class PartCandidates:
    """The candidates of the rows that draw, in the part of one rank.

    `masses_G` has the sum of the weights exp((score - best score of the part) / temperature), and `surprises_G` the sum
    of each weight times its logarithm. Both are 0 for rows whose draws do not need them.
    """

    best: BestScores  # [G, C]
    logits_GC: Tensor | None  # float32; None where they are the scores
    masses_G: Tensor  # float32
    surprises_G: Tensor  # float32


@dataclass(frozen=True, slots=True)
class PartRows:
    """The rows of a step in the part of one rank."""

    best_N: Tensor  # int64, of the whole vocabulary: the first id with the highest score
    scores_N: Tensor  # float32: that score
    logits_N: Tensor | None  # float32: the logit of that id; None where logits are the scores
    log_mass_N: Tensor  # float32: logsumexp of the logits
    not_finite_N: Tensor  # bool: whether the logits hold NaN or an infinity
    candidates: PartCandidates | None  # None: no row draws
    top: BestScores | None  # [H, K] logits; None: no row asks for alternatives

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the rank sends, in the order of `PartSizes.shapes`."""
        found: list[Tensor | None] = [self.best_N, self.scores_N, self.log_mass_N, self.not_finite_N, self.logits_N]
        if (candidates := self.candidates) is not None:
            found += [candidates.best.ids, candidates.best.scores, candidates.logits_GC]
            found += [candidates.masses_G, candidates.surprises_G]
        if self.top is not None:
            found += [self.top.ids, self.top.scores]
        return tuple(tensor for tensor in found if tensor is not None)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best scores of the whole rows that draw, the best first, and totals of these rows (`RowTotals`)."""

    best: BestScores  # [G, C]
    logits_GC: Tensor  # float32
    log_mass_G: Tensor  # float64
    entropy_G: Tensor  # float64


@dataclass(frozen=True, slots=True)
class JoinedRows:
    """The rows of a step, from the parts of all ranks."""

    scan: RowScan  # its `best_N` is the best id by score
    scores_N: Tensor  # float32: the highest score
    logits_N: Tensor  # float32: the logit of the best id
    candidates: Candidates | None
    top: BestScores | None  # [H, K]

    def row(self, row: int, *, drawn: int | None, rated: int | None) -> "JoinedRows":
        """Return one row. `drawn` is its place among the rows that draw, and `rated` among those with alternatives."""
        this, found, scan = slice(row, row + 1), self.candidates, self.scan
        candidates = None
        if found is not None and drawn is not None:
            own = slice(drawn, drawn + 1)
            candidates = Candidates(
                BestScores(found.best.ids[own], found.best.scores[own]),
                found.logits_GC[own],
                found.log_mass_G[own],
                found.entropy_G[own],
            )
        top = None
        if self.top is not None and rated is not None:
            own = slice(rated, rated + 1)
            top = BestScores(self.top.ids[own], self.top.scores[own])
        return JoinedRows(scan.rows(this), self.scores_N[this], self.logits_N[this], candidates, top)


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Return the words of some tensors, [W] int32. Integers have to fit into 32 bits; floats are float32."""
    return torch.cat(
        [
            (tensor.contiguous().view(torch.int32) if tensor.is_floating_point() else tensor.int()).flatten()
            for tensor in tensors
        ]
    )


def unpack(words_PW: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return the words of each tensor that the ranks have packed, [P, *shape] int32."""
    pieces = torch.split(words_PW, [prod(shape) for shape in shapes], dim=1)
    return [piece.reshape(-1, *shape) for piece, shape in zip(pieces, shapes, strict=True)]


def floats(words: Tensor) -> Tensor:
    """Return words as the float32 numbers whose bits they are."""
    return words.contiguous().view(torch.float32)


def best_of_part(
    scores_RV: Tensor, num_best: int, vocabulary: SharedVocabulary, known_RK: Tensor | None = None
) -> BestScores:
    """Return the best of this rank's scores, as many of each row as any rank brings, where rows have `num_best`.

    `known_RK` (int64) are places of best scores, the best first, where a first pass has found some.
    """
    wanted = min(num_best, vocabulary.most_ids)
    scores_RK, places_RK = best_scores(scores_RV, min(wanted, vocabulary.num_ids), known_RK)
    missing = (0, wanted - scores_RK.shape[-1])
    if missing[1]:
        scores_RK = torch.nn.functional.pad(scores_RK, missing, value=-torch.inf)
        places_RK = torch.nn.functional.pad(places_RK, missing)
    return BestScores(places_RK + vocabulary.first_id, scores_RK)


def join_best(ids_PRC: Tensor, scores_PRC: Tensor, num_best: int) -> tuple[BestScores, Tensor]:
    """Return the best scores [R, `num_best`] of whole rows, and their places [R, `num_best`] in the ranks' lists.

    Of equal scores those of the smaller ids come first where each rank has them in this order, because the first rank
    has the smallest ids. A place counts through the lists of a row, laid end to end.
    """
    ids_RC, scores_RC = _end_to_end(ids_PRC), _end_to_end(scores_PRC)
    sorted_RC, places_RC = scores_RC.sort(dim=-1, descending=True, stable=True)
    places_RC = places_RC[:, :num_best]
    return BestScores(ids_RC.gather(-1, places_RC), sorted_RC[:, :num_best]), places_RC


def join_parts(
    words_PW: Tensor, sizes: PartSizes, *, num_candidates: int, num_best: int, temperatures_G1: Tensor | None
) -> JoinedRows:
    """Return the rows of a step from the words of all ranks.

    `num_candidates` and `num_best` are the numbers of candidates and of best logits of a whole row. The temperatures
    are those of the rows that draw.
    """
    pieces = iter(unpack(words_PW, sizes.shapes))
    best_PN, scores_PN, masses_PN, not_finite_PN = (next(pieces) for _ in range(4))
    scores_PN = floats(scores_PN)
    logits_PN = floats(next(pieces)) if sizes.changes_scores else None
    winner_1N = scores_PN.argmax(0, keepdim=True)  # of equal scores the first rank's, which has the smaller ids
    scan = RowScan(
        best_N=best_PN.gather(0, winner_1N).squeeze(0).long(),
        not_finite_N=not_finite_PN.any(0),
        log_mass_N=floats(masses_PN).double().logsumexp(0).float(),
    )
    candidates = None
    if sizes.num_drawn:
        assert temperatures_G1 is not None
        ids_PGC, scores_PGC = next(pieces).long(), floats(next(pieces))
        best, places_GC = join_best(ids_PGC, scores_PGC, num_candidates)
        logits_GC = best.scores
        if sizes.changes_scores:
            logits_GC = _end_to_end(floats(next(pieces))).gather(-1, places_GC)
        log_mass_G, entropy_G = _join_totals(
            scores_PGC[:, :, 0], floats(next(pieces)), floats(next(pieces)), temperatures_G1.squeeze(-1)
        )
        candidates = Candidates(best, logits_GC, log_mass_G, entropy_G)
    top = None
    if sizes.num_rated:
        top, _ = join_best(next(pieces).long(), floats(next(pieces)), num_best)
    scores_N = scores_PN.gather(0, winner_1N).squeeze(0)
    return JoinedRows(
        scan=scan,
        scores_N=scores_N,
        logits_N=scores_N if logits_PN is None else logits_PN.gather(0, winner_1N).squeeze(0),
        candidates=candidates,
        top=top,
    )


def _end_to_end(lists_PRC: Tensor) -> Tensor:
    """Return the lists of all ranks for each row, [R, P C]."""
    return lists_PRC.transpose(0, 1).flatten(1)


def _join_totals(
    highest_PG: Tensor, masses_PG: Tensor, surprises_PG: Tensor, temperatures_G: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the mass and the entropy of each row, float64 [G] each.

    A weight of a part is relative to the best score of the part, and a weight of the row to the best score of the row.
    """
    highest_G = highest_PG.amax(0)
    # The logarithm by which all weights of a part shrink; that of a part without a possible id is clamped.
    shift_PG = ((highest_PG - highest_G) / temperatures_G).clamp(min=_LEAST).double()
    shrink_PG = shift_PG.exp()
    mass_G = (masses_PG.double() * shrink_PG).sum(0)
    surprise_G = ((surprises_PG.double() + shift_PG * masses_PG.double()) * shrink_PG).sum(0)
    mass_G = torch.where(mass_G > 0.0, mass_G, 1.0)  # of a row that needs no totals
    log_mass_G = mass_G.log()
    return log_mass_G, log_mass_G - surprise_G / mass_G
