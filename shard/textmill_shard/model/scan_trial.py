"""Runs the first pass over scores before the first request, because a GPU compiles a kernel at its first launch."""

# N rows of scores, V vocabulary, S slots

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import fields

import torch

from textmill_shard.model.runner import RowScans
from textmill_shard.model.score_changes import (
    BiasChange,
    CountChange,
    IdLists,
    MaskChange,
    RepetitionChange,
    ScoreChanges,
    Temperatures,
)

log = logging.getLogger(__name__)

NUM_CANDIDATES = 1024  # of a row, as many as a draw takes that cuts nothing off
_OF_SCORES = tuple(field.name for field in fields(ScoreChanges) if field.name != "temperatures")
# No row asks for a change, or some row does: all changes together are one kernel, and draws come beside both.
_BATCHES: Sequence[tuple[str, ...]] = ((), _OF_SCORES)
_TRIAL_ROWS = 2
_LIST_WIDTH = 64


@torch.inference_mode()
def compile_scans(scans: RowScans, *, vocab_size: int, device: torch.device) -> None:
    """Launch a pass of each kind that batches can ask for, and the noise of draws.

    A GPU compiles a kernel as it is first launched, for which all running requests would wait. `vocab_size` is the
    number of ids whose logits this rank computes.
    """
    began_s = time.monotonic()
    logits_NV = torch.zeros(_TRIAL_ROWS, vocab_size, device=device)
    num_candidates = min(NUM_CANDIDATES, vocab_size)
    for names in _BATCHES:
        scans.first_pass(logits_NV, _changes(logits_NV, names))
        scans.first_pass(logits_NV, _changes(logits_NV, names), num_candidates)
        scans.first_pass(logits_NV, _changes(logits_NV, (*names, "temperatures")), num_candidates)
    seeds_S2 = torch.zeros(_TRIAL_ROWS, 2, dtype=torch.int64, device=device)
    ids_SC = torch.zeros(_TRIAL_ROWS, num_candidates, dtype=torch.int64, device=device)
    scans.gumbel(seeds_S2, seeds_S2[:, 0].contiguous(), ids_SC)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    log.info("kernels of the sampler are ready", extra={"seconds": round(time.monotonic() - began_s, 2)})


def _changes(logits_NV: torch.Tensor, names: Collection[str]) -> ScoreChanges:
    """Return the changes of these names, of one id of each row, with numbers that change nothing."""
    num_rows, device = len(logits_NV), logits_NV.device
    slots_N = torch.arange(num_rows, device=device)
    ids_SE = torch.zeros(num_rows, _LIST_WIDTH, dtype=torch.int64, device=device)
    lists = IdLists(ids_SE, torch.ones(num_rows, dtype=torch.int64, device=device))
    ones_S, zeros_SE = torch.ones(num_rows, device=device), torch.zeros(num_rows, _LIST_WIDTH, device=device)
    forbidden_SV = torch.zeros(logits_NV.shape, dtype=torch.bool, device=device) if "mask" in names else None
    return ScoreChanges(
        repetition=RepetitionChange(slots_N, lists, ones_S) if "repetition" in names else None,
        counts=CountChange(slots_N, lists, zeros_SE, ones_S, ones_S) if "counts" in names else None,
        bias=BiasChange(slots_N, lists, zeros_SE) if "bias" in names else None,
        mask=None if forbidden_SV is None else MaskChange(slots_N, forbidden_SV),
        temperatures=Temperatures(slots_N, ones_S) if "temperatures" in names else None,
    )
