"""Joins what the ranks of a divided vocabulary have found in their parts of the rows of scores."""

# N rows of scores, P ranks

import numpy as np
import torch

from textmill_shard.model.forward_batch import HostScan
from textmill_shard.native.ranks import RankRoom


def join_scans(scan: HostScan, room: RankRoom, first_ids: tuple[int, ...]) -> HostScan:
    """Return the scan of whole rows. All ranks call this with the scans of their parts, and get equal scans.

    `first_ids` has the first token id of each rank.
    """
    # float64 holds each of these numbers exactly.
    mine_4N = np.stack([scan.best_N, scan.best_scores_N, scan.log_mass_N, scan.not_finite_N]).astype(np.float64)
    best_PN, scores_PN, masses_PN, not_finite_PN = room.gather(torch.from_numpy(mine_4N)).numpy().transpose(1, 0, 2)
    winner_N = scores_PN.argmax(0)  # of equal scores the first rank's, which has the smaller ids
    rows_N = np.arange(best_PN.shape[1])
    with np.errstate(invalid="ignore"):  # rows that are not finite have NaN
        log_mass_N = np.logaddexp.reduce(masses_PN, axis=0)
    return HostScan(
        best_N=best_PN[winner_N, rows_N].astype(np.int64) + np.array(first_ids)[winner_N],
        best_scores_N=scores_PN[winner_N, rows_N].astype(np.float32),
        not_finite_N=not_finite_PN.any(0),
        log_mass_N=log_mass_N.astype(np.float32),
    )
