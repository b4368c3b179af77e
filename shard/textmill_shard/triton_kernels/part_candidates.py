"""Finds the candidates of a row among those of its parts, which `device/row_scan.py` writes as keys."""

# N rows, P parts of a row, C candidates

import torch

ID_BITS = 0xFFFFFFFF  # of a key, which has the id in the lower half


def best_of_parts(keys_NPC: torch.Tensor) -> torch.Tensor:
    """Return the ids `[N, C]` int64 of the smallest keys of each row, the smallest first. Keys are int64."""
    keys_NC = torch.topk(keys_NPC.flatten(1), keys_NPC.shape[-1], dim=-1, largest=False).values
    return keys_NC & ID_BITS
