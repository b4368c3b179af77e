"""Lays the logits of ranks that share a vocabulary side by side, for the rows that need all of them.

Of a row whose request takes the best id, each rank finds the best id of its part, the score of that id and the
normaliser, and only these numbers travel.
"""

# N rows whose logits are wanted, V vocabulary, P ranks

from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.model.forward_batch import ForwardOutput, HostScan, RowScan


@dataclass(frozen=True, slots=True)
class _Facts:
    """Facts of rows, each [N], on the device of the logits."""

    best_N: torch.Tensor  # int64, the first id with the highest score
    scores_N: torch.Tensor  # float32, the highest score
    log_mass_N: torch.Tensor  # float32
    not_finite_N: torch.Tensor  # bool


class LogitsJoiner:
    """Joins the parts of the logits. All ranks call each method with equal arguments but their own part."""

    def __init__(self, parallel: TensorParallel, sizes: tuple[int, ...]) -> None:
        """`sizes` has the number of token ids of each rank."""
        self._parallel = parallel
        self._sizes = sizes
        self._first_id = tuple(accumulate(sizes[:-1], initial=0))[parallel.rank]

    def join_rows(self, part_NV: torch.Tensor) -> torch.Tensor:
        """Return whole rows [N, V]."""
        if not part_NV.shape[0]:
            return part_NV.new_empty(0, sum(self._sizes))
        return self._parallel.all_gather(part_NV, self._sizes)

    def join(self, output: ForwardOutput, whole_rows_N: npt.NDArray[np.int64] | None) -> ForwardOutput:
        """Return the output with rows of the width of the vocabulary.

        `whole_rows_N` are the rows that are needed whole; None = all. The other rows have minus infinity everywhere but
        at their best id. Unless all rows are whole, the output has the facts of the rows: in `scan` on a CPU, in
        `row_scan` on a GPU.
        """
        part_NV = output.logits_NV
        if whole_rows_N is None or len(whole_rows_N) == part_NV.shape[0]:
            return replace(output, logits_NV=self.join_rows(part_NV), scan=None)
        facts = self._join_facts(_facts_of(part_NV, output.scan))
        logits_NV = part_NV.new_full((part_NV.shape[0], sum(self._sizes)), -torch.inf)
        logits_NV.scatter_(1, facts.best_N.unsqueeze(1), facts.scores_N.unsqueeze(1))
        if len(whole_rows_N):
            rows = torch.from_numpy(whole_rows_N).to(part_NV.device)
            logits_NV[rows] = self.join_rows(part_NV[rows])
        if part_NV.device.type == "cpu":
            on_host = HostScan(
                best_N=facts.best_N.numpy(),
                best_scores_N=facts.scores_N.numpy(),
                not_finite_N=facts.not_finite_N.numpy(),
                log_mass_N=facts.log_mass_N.numpy(),
            )
            return replace(output, logits_NV=logits_NV, scan=on_host)
        return replace(
            output, logits_NV=logits_NV, row_scan=RowScan(facts.best_N, facts.not_finite_N, facts.log_mass_N)
        )

    def _join_facts(self, facts: _Facts) -> _Facts:
        """Return the facts of whole rows, from those of the ranks' parts."""
        # float64 holds each of these numbers exactly.
        mine_4N = torch.stack(
            [
                (facts.best_N + self._first_id).double(),
                facts.scores_N.double(),
                facts.log_mass_N.double(),
                facts.not_finite_N.double(),
            ]
        )
        best_PN, scores_PN, masses_PN, not_finite_PN = self._parallel.gather(mine_4N).unbind(1)
        winner_1N = scores_PN.argmax(0, keepdim=True)  # of equal scores the first rank's, which has the smaller ids
        return _Facts(
            best_N=best_PN.gather(0, winner_1N).squeeze(0).long(),
            scores_N=scores_PN.gather(0, winner_1N).squeeze(0).float(),
            log_mass_N=masses_PN.logsumexp(0).float(),
            not_finite_N=not_finite_PN.any(0),
        )


def _facts_of(part_NV: torch.Tensor, scan: HostScan | None) -> _Facts:
    """Return the facts of this rank's part of the rows, which the native step has found already (`scan`)."""
    if scan is not None:
        return _Facts(
            best_N=torch.from_numpy(scan.best_N),
            scores_N=torch.from_numpy(scan.best_scores_N),
            log_mass_N=torch.from_numpy(scan.log_mass_N),
            not_finite_N=torch.from_numpy(scan.not_finite_N),
        )
    best_N = part_NV.argmax(-1)
    return _Facts(
        best_N=best_N,
        scores_N=part_NV.gather(1, best_N.unsqueeze(1)).squeeze(1),
        log_mass_N=part_NV.logsumexp(-1),
        not_finite_N=~(torch.isfinite(part_NV.amin(-1)) & torch.isfinite(part_NV.amax(-1))),
    )
