"""Chooses which of a row's best scores may be drawn: min-p, top-k, top-p, typical-p, in that order.

S slots, R rows, C scores per row in falling order. Each filter sees the distribution that the filter before
has left, renormalised. Scores are logits divided by temperature, minus the maximum of their row.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.slots.sampling_params import SamplingParams

OFF_TOP_K = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True)
class Limits:
    """The filters of R rows, on the device. A row that does not use a filter has a value that lets every id pass."""

    min_score_R: Tensor  # float64: log of min-p
    top_k_R: Tensor  # int64; off = more than any vocabulary
    top_p_R: Tensor  # float64; off = infinity
    typical_p_R: Tensor  # float64; off = infinity
    needs_row_mass_R: Tensor  # bool: the row has neither min-p nor top-k, so the first normaliser is the whole row's
    is_truncated_R: Tensor  # bool: the row uses at least one filter
    uses_typical_p: bool
    uses_top_p: bool

    def at(self, places: Tensor) -> "Limits":
        """Return the filters of some of the rows."""
        return Limits(
            min_score_R=self.min_score_R[places],
            top_k_R=self.top_k_R[places],
            top_p_R=self.top_p_R[places],
            typical_p_R=self.typical_p_R[places],
            needs_row_mass_R=self.needs_row_mass_R[places],
            is_truncated_R=self.is_truncated_R[places],
            uses_typical_p=self.uses_typical_p,
            uses_top_p=self.uses_top_p,
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """The scores that may be drawn.

    `keep_RC` (bool) marks the scores that the filters keep. `fits_R` (bool) says that the filters of the row would keep
    no score beyond the C.
    """

    keep_RC: Tensor
    fits_R: Tensor


@dataclass(frozen=True, slots=True)
class RowTotals:
    """Totals over whole rows, float64 [R] each, and 0 for rows that do not need them.

    `log_mass_R` is the logarithm of the sum of the exponentials of the scores. `entropy_R` is the entropy of their
    softmax, in nats.
    """

    log_mass_R: Tensor
    entropy_R: Tensor


def is_truncated(params: SamplingParams) -> bool:
    """Whether a filter of this request leaves tokens out."""
    return params.top_k > 0 or params.min_p > 0.0 or params.top_p < 1.0 or params.typical_p < 1.0


def needs_row_mass(params: SamplingParams) -> bool:
    """Whether the filters of this request need the total of the whole row.

    A request with min-p or top-k does not, because these two filters cut by ratio or by rank, and the later filters
    take the total of the scores that are left.
    """
    return params.top_k == 0 and params.min_p == 0.0


class Filters:
    """The filters of the slots, in arrays on the device.

    Two marks of each slot are on the host, so that a step skips top-p and typical-p where no row uses them.
    """

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        self._min_scores_S = torch.zeros(num_slots, dtype=torch.float64, device=device)
        self._top_k_S = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._top_p_S = torch.zeros(num_slots, dtype=torch.float64, device=device)
        self._typical_p_S = torch.zeros(num_slots, dtype=torch.float64, device=device)
        self._needs_row_mass_S = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self._is_truncated_S = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self._has_top_p_S = np.zeros(num_slots, dtype=bool)
        self._has_typical_p_S = np.zeros(num_slots, dtype=bool)

    def admit(self, slot: int, params: SamplingParams) -> None:
        """Write the filters of the request that takes the slot."""
        self._min_scores_S[slot] = float(torch.tensor(params.min_p, dtype=torch.float64).log())
        self._top_k_S[slot] = params.top_k or OFF_TOP_K
        self._top_p_S[slot] = _share(params.top_p)
        self._typical_p_S[slot] = _share(params.typical_p)
        self._needs_row_mass_S[slot] = needs_row_mass(params)
        self._is_truncated_S[slot] = is_truncated(params)
        self._has_top_p_S[slot] = params.top_p < 1.0
        self._has_typical_p_S[slot] = params.typical_p < 1.0

    def limits(self, rows: StageRows) -> Limits:
        """Return the filters of some rows."""
        slots_R, host_slots_R = rows.slots_G, rows.on_host.slots_G
        return Limits(
            min_score_R=self._min_scores_S[slots_R],
            top_k_R=self._top_k_S[slots_R],
            top_p_R=self._top_p_S[slots_R],
            typical_p_R=self._typical_p_S[slots_R],
            needs_row_mass_R=self._needs_row_mass_S[slots_R],
            is_truncated_R=self._is_truncated_S[slots_R],
            uses_typical_p=bool(self._has_typical_p_S[host_slots_R].any()),
            uses_top_p=bool(self._has_top_p_S[host_slots_R].any()),
        )


def truncate(scores_RC: Tensor, limits: Limits, totals: RowTotals, *, is_whole: bool) -> Kept:
    """Apply the filters to R rows.

    `scores_RC` is float64, falls along each row and begins with 0. `is_whole` says that the C scores are the whole row.
    """
    num_columns = scores_RC.shape[-1]
    keep_RC = scores_RC >= limits.min_score_R.unsqueeze(-1)
    kth_R1 = scores_RC.gather(-1, (limits.top_k_R - 1).clamp(max=num_columns - 1).unsqueeze(-1))
    has_kth_R1 = (limits.top_k_R <= num_columns).unsqueeze(-1)
    keep_RC &= (scores_RC >= kth_R1) | ~has_kth_R1  # scores equal to the k-th stay
    # Where min-p or top-k leaves the last score out, they leave out all scores beyond, none of which is higher.
    is_cut_R = ~keep_RC[:, -1]
    log_mass_R = totals.log_mass_R.where(limits.needs_row_mass_R, _log_mass(scores_RC, keep_RC))
    if limits.uses_top_p:
        probs_RC = (scores_RC - log_mass_R.unsqueeze(-1)).exp() * keep_RC
        mass_before_RC = probs_RC.cumsum(-1) - probs_RC
        keep_RC &= mass_before_RC < limits.top_p_R.unsqueeze(-1)
    # A row that needs no total of the whole row fits only if min-p or top-k cut inside, because its total is else not
    # known. In a row that has the total of the whole row, top-p may cut inside too.
    fits_R = is_cut_R | (limits.needs_row_mass_R & ~keep_RC[:, -1])
    if limits.uses_typical_p:
        fits_R |= _keep_typical(scores_RC, keep_RC, limits, totals)
    return Kept(keep_RC=keep_RC, fits_R=torch.ones_like(fits_R) if is_whole else fits_R)


def _keep_typical(scores_RC: Tensor, keep_RC: Tensor, limits: Limits, totals: RowTotals) -> Tensor:
    """Narrow `keep_RC` in place to the ids whose surprise is nearest to the entropy.

    Returns bool [R]: True for each row that no filter cut before, and in which typical-p would keep no score beyond
    the C.

    Locally typical sampling: C. Meister et al., "Locally Typical Sampling" (TACL 2023).
    """
    is_open_R = limits.needs_row_mass_R & torch.isinf(limits.top_p_R)  # no filter has left a score out before
    log_mass_R = totals.log_mass_R.where(is_open_R, _log_mass(scores_RC, keep_RC))
    log_probs_RC = (scores_RC - log_mass_R.unsqueeze(-1)).masked_fill(~keep_RC, -torch.inf)
    probs_RC = log_probs_RC.exp()
    entropy_R = -(probs_RC * log_probs_RC).nansum(-1)
    entropy_R1 = totals.entropy_R.where(is_open_R, entropy_R).unsqueeze(-1)
    distance_RC = (-log_probs_RC - entropy_R1).abs()
    near_RC, order_RC = distance_RC.sort(dim=-1, stable=True)
    mass_RC = probs_RC.gather(-1, order_RC).cumsum(-1)
    num_short_R = (mass_RC < limits.typical_p_R.unsqueeze(-1)).sum(-1)
    widest_R1 = near_RC.gather(-1, num_short_R.clamp(max=near_RC.shape[-1] - 1).unsqueeze(-1))
    keep_RC &= distance_RC <= widest_R1
    # In an open row, each id beyond the C is at most as likely as the last of the C. When that last id is farther
    # from the entropy than the set reaches, it lies on the unlikely side, because on the likely side the last id would
    # be the nearest of all C. Then each id beyond is at least as far from the entropy, and stays out.
    return is_open_R & (widest_R1.squeeze(-1) < distance_RC[:, -1])


def _log_mass(scores_RC: Tensor, keep_RC: Tensor) -> Tensor:
    """Return the logarithm of the sum of the exponentials of the scores that `keep_RC` marks, [R]."""
    return scores_RC.masked_fill(~keep_RC, -torch.inf).logsumexp(-1)


def _share(value: float) -> float:
    """Return the probability mass that a filter must reach. 1 means off and becomes infinity, which no sum reaches."""
    return value if value < 1.0 else math.inf
