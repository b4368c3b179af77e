"""Launches the first pass over scores: each part of a row is read once, and a second kernel merges the parts."""

# N rows of scores, V vocabulary, P parts of a row, C candidates; S slots, E entries of a list

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from textmill_shard.model.forward_batch import RowScan
from textmill_shard.model.score_changes import (
    BiasChange,
    CountChange,
    FirstPass,
    IdLists,
    MaskChange,
    RepetitionChange,
    ScoreChanges,
)
from textmill_shard.triton_kernels import launching
from textmill_shard.triton_kernels.constants import LIST_ENTRIES, SCAN_IDS, scan_constants
from textmill_shard.triton_kernels.device.row_scan import merge_parts, scan_parts
from textmill_shard.triton_kernels.part_candidates import best_of_parts
from textmill_shard.triton_kernels.strided_rows import dense_rows
from textmill_shard.triton_kernels.tiles import power_of_two

LEAST_ABSENT_ROWS = 64  # for which "no row asks" is written at first


class ScoreScan:
    """The first pass of one GPU, with the tensors that stand for changes which no row asks for."""

    def __init__(self) -> None:
        self._asked_by_nobody: _Changes | None = None  # made at the first pass that changes scores

    def first_pass(self, logits_NV: torch.Tensor, changes: ScoreChanges, num_candidates: int) -> FirstPass:
        """Return what `DeviceKernels.first_pass` returns."""
        logits_NV = dense_rows(logits_NV)
        num_rows, vocab_size = logits_NV.shape
        device = logits_NV.device
        num_parts = -(-vocab_size // SCAN_IDS)
        scores_NV = None
        if changes.changes_scores:
            scores_NV = torch.empty(num_rows, vocab_size, dtype=torch.float32, device=device)
        # Each in memory of its own: the parts of one tensor have other alignments for other numbers of rows, for which
        # the compiler would make further variants.
        best_scores, tempered_sums, *of_logits = (
            torch.empty(num_rows, num_parts, dtype=torch.float32, device=device) for _ in range(5)
        )
        best_ids = torch.empty(num_rows, num_parts, dtype=torch.int32, device=device)
        keys_NPC = None
        if 0 < num_candidates <= SCAN_IDS:
            keys_NPC = torch.empty(num_rows, num_parts, num_candidates, dtype=torch.int64, device=device)
        heat = changes.temperatures
        heat_tensors = (None, None) if heat is None else (heat.slots_N, heat.temperatures_S)
        lists, strides = self._change_arguments(changes, num_rows, device)
        launching.launch(
            scan_parts,
            (num_rows, num_parts),
            logits_NV,
            scores_NV,
            best_scores,
            best_ids,
            None if heat is None else tempered_sums,
            *of_logits,
            keys_NPC,
            *lists,
            *heat_tensors,
            logits_NV.stride(0),
            vocab_size,
            *strides,
            num_candidates,
            constants=scan_constants(
                has_changes=changes.changes_scores,
                has_temperature=heat is not None,
                has_candidates=keys_NPC is not None,
            ),
            num_warps=4,
        )
        best_N = torch.empty(num_rows, dtype=torch.int64, device=device)
        not_finite_N = torch.empty(num_rows, dtype=torch.bool, device=device)
        log_mass_N, tempered_mass_N = (torch.empty(num_rows, dtype=torch.float32, device=device) for _ in range(2))
        launching.launch(
            merge_parts,
            (num_rows,),
            best_scores,
            best_ids,
            None if heat is None else tempered_sums,
            *of_logits,
            best_N,
            not_finite_N,
            log_mass_N,
            None if heat is None else tempered_mass_N,
            *heat_tensors,
            num_parts,
            constants={"PARTS": power_of_two(num_parts), "HAS_TEMPERATURE": heat is not None},
            num_warps=1,
        )
        return FirstPass(
            scores_NV=logits_NV if scores_NV is None else scores_NV,
            scan=RowScan(best_N=best_N, not_finite_N=not_finite_N, log_mass_N=log_mass_N),
            best_N=best_N,
            tempered_mass_N=None if heat is None else tempered_mass_N,
            candidates_NC=None if keys_NPC is None else best_of_parts(keys_NPC),
        )

    def _change_arguments(
        self, changes: ScoreChanges, num_rows: int, device: torch.device
    ) -> tuple[Sequence[torch.Tensor | None], Sequence[int]]:
        """Return the tensors of the changes of scores, in the order of `scan_parts`, and their strides."""
        if not changes.changes_scores:
            return (None,) * 16, (0,) * 5
        if self._asked_by_nobody is None or len(self._asked_by_nobody.repetition.slots_N) < num_rows:
            self._asked_by_nobody = _asked_by_nobody(max(LEAST_ABSENT_ROWS, power_of_two(num_rows)), device)
        nobody = self._asked_by_nobody
        seen, counts = changes.repetition or nobody.repetition, changes.counts or nobody.counts
        bias, mask = changes.bias or nobody.bias, changes.mask or nobody.mask
        tensors = (
            *(seen.slots_N, seen.lists.ids_SE, seen.lists.num_ids_S, seen.penalties_S),
            *(counts.slots_N, counts.lists.ids_SE, counts.lists.num_ids_S),
            *(counts.counts_SE, counts.presence_S, counts.frequency_S),
            *(bias.slots_N, bias.lists.ids_SE, bias.lists.num_ids_S, bias.amounts_SE),
            *(mask.slots_N, mask.forbidden_SV),
        )
        wide = (seen.lists.ids_SE, counts.lists.ids_SE, counts.counts_SE, bias.lists.ids_SE, bias.amounts_SE)
        return tensors, tuple(tensor.stride(0) for tensor in wide)


@dataclass(frozen=True, slots=True)
class _Changes:
    """All changes of scores."""

    repetition: RepetitionChange
    counts: CountChange
    bias: BiasChange
    mask: MaskChange


def _asked_by_nobody(num_rows: int, device: torch.device) -> _Changes:
    """Return changes for which no row asks. The kernel reads the first entry of their tensors at most."""
    nobody_N = torch.full((num_rows,), -1, dtype=torch.int64, device=device)
    ids_SE = torch.zeros(1, LIST_ENTRIES, dtype=torch.int64, device=device)
    numbers_SE = torch.zeros(1, LIST_ENTRIES, dtype=torch.float32, device=device)
    lists, numbers_S = IdLists(ids_SE, ids_SE[0]), numbers_SE[0]
    return _Changes(
        RepetitionChange(nobody_N, lists, numbers_S),
        CountChange(nobody_N, lists, numbers_SE, numbers_S, numbers_S),
        BiasChange(nobody_N, lists, numbers_SE),
        MaskChange(nobody_N, torch.zeros(1, LIST_ENTRIES, dtype=torch.bool, device=device)),
    )
