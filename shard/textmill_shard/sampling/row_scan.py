"""Scanners of rows of scores: best id, whether all scores are finite, and the normaliser."""

# N rows, V vocabulary, C candidates

from typing import Protocol

import torch
from torch import Tensor

from textmill_shard.model.forward_batch import RowScan
from textmill_shard.model.runner import RowScans
from textmill_shard.model.score_changes import FirstPass, IdLists, ScoreChanges
from textmill_shard.native.kernels import Kernels
from textmill_shard.sampling import noise


class RowChanger(Protocol):
    """Does the first pass over the rows of a step."""

    def first_pass(self, logits_NV: Tensor, changes: ScoreChanges, num_candidates: int = 0) -> FirstPass:
        """Change float32 rows and scan them, in one read of each row. The logits stay as they are.

        `num_candidates` (at most V) is the wanted number of best ids of each row.
        """
        ...


class RowScanner(Protocol):
    """Scans rows for the sampler, which gets one scanner when it is built."""

    def scan(self, scores_NV: Tensor, *, wants_mass: bool) -> RowScan:
        """Scan float32 rows. `log_mass_N` of the result may be None unless `wants_mass`."""
        ...

    @property
    def changer(self) -> RowChanger | None:
        """Changes and scans rows in one pass; None where the stages change the scores one by one, which is quicker."""
        ...

    def gumbel(self, seed_words_S2: Tensor, positions_S: Tensor, ids_SC: Tensor) -> Tensor:
        """Return the noise of draws, as `noise.gumbel` does."""
        ...


class TorchRowScanner:
    """Scans with operations of torch, on any device. This scanner is the reference for the others.

    `first_pass` is for tests: the stages do the same with fewer operations.
    """

    changer: RowChanger | None = None

    def scan(self, scores_NV: Tensor, *, wants_mass: bool) -> RowScan:
        # Both reductions pass a NaN on. Together they take 0.2 ms for 32 rows of 49,152 scores, and aminmax takes 7 ms.
        not_finite_N = ~(torch.isfinite(scores_NV.amin(-1)) & torch.isfinite(scores_NV.amax(-1)))
        return RowScan(
            best_N=scores_NV.argmax(-1),
            not_finite_N=not_finite_N,
            log_mass_N=scores_NV.logsumexp(-1) if wants_mass else None,
        )

    def first_pass(self, logits_NV: Tensor, changes: ScoreChanges, num_candidates: int = 0) -> FirstPass:
        scan = self.scan(logits_NV, wants_mass=True)
        scores_NV = logits_NV.clone() if changes.changes_scores else logits_NV
        seen, counts, bias, mask = changes.repetition, changes.counts, changes.bias, changes.mask
        for row in range(len(logits_NV)):
            scores_V = scores_NV[row]
            if seen is not None and (slot := int(seen.slots_N[row])) >= 0:
                ids_E, _ = _ids(seen.lists, slot, len(scores_V))
                penalty = seen.penalties_S[slot]
                scores_E = scores_V[ids_E]
                scores_V[ids_E] = torch.where(scores_E < 0, scores_E * penalty, scores_E / penalty)
            if counts is not None and (slot := int(counts.slots_N[row])) >= 0:
                ids_E, places_E = _ids(counts.lists, slot, len(scores_V))
                counts_E = counts.counts_SE[slot, places_E]
                amounts_E = counts.presence_S[slot] + counts.frequency_S[slot] * counts_E
                scores_V[ids_E] -= torch.where(counts_E > 0, amounts_E, 0.0)
            if bias is not None and (slot := int(bias.slots_N[row])) >= 0:
                ids_E, places_E = _ids(bias.lists, slot, len(scores_V))
                scores_V[ids_E] += bias.amounts_SE[slot, places_E]
            if mask is not None and (slot := int(mask.slots_N[row])) >= 0:
                scores_V[mask.forbidden_SV[slot]] = -torch.inf
        tempered_mass_N = None
        if changes.temperatures is not None:
            slots_N, temperatures_S = changes.temperatures.slots_N, changes.temperatures.temperatures_S
            temperatures_N1 = torch.where(slots_N < 0, 1.0, temperatures_S[slots_N.clamp(min=0)]).unsqueeze(-1)
            tempered_mass_N = ((scores_NV - scores_NV.amax(-1, keepdim=True)) / temperatures_N1).logsumexp(-1)
        candidates_NC = torch.topk(scores_NV, num_candidates, dim=-1).indices if num_candidates else None
        return FirstPass(scores_NV, scan, scores_NV.argmax(-1), tempered_mass_N, candidates_NC)

    def gumbel(self, seed_words_S2: Tensor, positions_S: Tensor, ids_SC: Tensor) -> Tensor:
        return noise.gumbel(seed_words_S2, positions_S, ids_SC)


def _ids(lists: IdLists, slot: int, num_scores: int) -> tuple[Tensor, Tensor]:
    """Return the ids of a list that have a score, and where these ids stand in the list."""
    ids_E = lists.ids_SE[slot, : int(lists.num_ids_S[slot])]
    places_E = ((ids_E >= 0) & (ids_E < num_scores)).nonzero().flatten()
    return ids_E[places_E], places_E


class DeviceRowScanner:
    """Scans with the kernels of a GPU, which read each row once."""

    def __init__(self, kernels: RowScans) -> None:
        self._kernels = kernels

    @property
    def changer(self) -> RowChanger:
        return self

    def scan(self, scores_NV: Tensor, *, wants_mass: bool) -> RowScan:
        return self._kernels.first_pass(scores_NV, ScoreChanges()).scan

    def first_pass(self, logits_NV: Tensor, changes: ScoreChanges, num_candidates: int = 0) -> FirstPass:
        return self._kernels.first_pass(logits_NV, changes, num_candidates)

    def gumbel(self, seed_words_S2: Tensor, positions_S: Tensor, ids_SC: Tensor) -> Tensor:
        return self._kernels.gumbel(seed_words_S2, positions_S, ids_SC)


class NativeRowScanner:
    """Scans with the native kernels, which read each row once and use their own threads.

    Only the thread of the step loop may call this scanner.
    """

    changer: RowChanger | None = None

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def scan(self, scores_NV: Tensor, *, wants_mass: bool) -> RowScan:
        best_N, not_finite_N, log_mass_N = self._kernels.scan_rows(scores_NV, wants_mass=wants_mass)
        return RowScan(best_N=best_N, not_finite_N=not_finite_N, log_mass_N=log_mass_N)

    def gumbel(self, seed_words_S2: Tensor, positions_S: Tensor, ids_SC: Tensor) -> Tensor:
        return noise.gumbel(seed_words_S2, positions_S, ids_SC)
