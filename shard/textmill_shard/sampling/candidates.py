"""Finds the best scores of a row, faster than a selection over the whole row.

N rows, V vocabulary, C candidates, G groups of ids per row, P ids per group.
"""

import torch
from torch import Tensor

GROUP_IDS = 8  # groups of 4 and of 16 ids were measured to be slower
WORTHWHILE_GROUPS = 2  # with fewer groups per candidate than this, a plain selection is faster


def best_scores(scores_NV: Tensor, num_candidates: int, known_NK: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the values and the ids, each [N, C], of the best scores of each row, the highest first.

    The values are those of `torch.topk`. Where equal scores lie at the cut, any of their ids may be returned.
    `known_NK` (int64) are the ids of the K best scores of each row, the best first, where a first pass over the rows
    has found them. The rows are not searched where K is large enough.

    A row's C best scores lie in the C groups whose best scores are highest. A group outside of these C groups is not
    needed, because each of the C groups has a score that is at least as high as the best score of that group. On a CPU,
    a selection over all ids takes most of the time, so the code selects groups first.
    """
    if known_NK is not None and known_NK.shape[-1] >= num_candidates:
        known_NC = known_NK[:, :num_candidates]
        return scores_NV.gather(-1, known_NC), known_NC
    num_rows, vocab_size = scores_NV.shape
    num_groups = vocab_size // GROUP_IDS
    is_even = num_groups * GROUP_IDS == vocab_size
    if not is_even or num_groups < WORTHWHILE_GROUPS * num_candidates or scores_NV.is_cuda:
        return torch.topk(scores_NV, num_candidates, dim=-1)
    # Group g has the ids g, g + G, g + 2 G ..., so that the maximum runs along whole lines of memory.
    scores_NPG = scores_NV.reshape(num_rows, GROUP_IDS, num_groups)
    groups_NC = scores_NPG.amax(1).topk(num_candidates, dim=-1, sorted=False).indices
    within_NPC = scores_NPG.gather(2, groups_NC.unsqueeze(1).expand(-1, GROUP_IDS, -1))
    best_NC, places_NC = within_NPC.flatten(1).topk(num_candidates, dim=-1)
    ids_NC = groups_NC.gather(1, places_NC % num_candidates) + places_NC // num_candidates * num_groups
    return best_NC, ids_NC
