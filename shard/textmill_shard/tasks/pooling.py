"""Makes of the vectors of a row's tokens one vector, by the ways that sentence-transformers' `1_Pooling` names."""

# R rows, L tokens of the longest row, D width of a token vector

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch


class PoolingMode(Enum):
    """One way. The values are the names after `pooling_mode_` in `1_Pooling/config.json`."""

    CLS = "cls_token"
    MAX = "max_tokens"
    MEAN = "mean_tokens"
    MEAN_BY_ROOT = "mean_sqrt_len_tokens"  # the sum over the square root of the number of tokens
    WEIGHTED_MEAN = "weightedmean_tokens"  # token i of a row, from 1, has the weight i
    LAST = "lasttoken"


@dataclass(frozen=True, slots=True)
class Pooling:
    """The ways whose vectors stand one behind the other, and whether the tokens of a prompt count."""

    modes: tuple[PoolingMode, ...]
    includes_prompt: bool = True

    def pool(self, hidden_RLD: torch.Tensor, *, lengths_R: torch.Tensor, prompt_lengths: Sequence[int]) -> torch.Tensor:
        """Return float32 `[R, modes x D]`. Padding behind `lengths_R` tokens, and perhaps the prompt, do not count."""
        hidden_RLD = hidden_RLD.float()
        places_L = torch.arange(hidden_RLD.shape[1], device=hidden_RLD.device)
        counts_RL = places_L < lengths_R.unsqueeze(1)
        if not self.includes_prompt and any(prompt_lengths):
            prompts_R = torch.tensor(prompt_lengths, device=hidden_RLD.device)
            counts_RL = counts_RL & (places_L >= prompts_R.unsqueeze(1))
        return torch.cat([_pool(mode, hidden_RLD, counts_RL, lengths_R) for mode in self.modes], dim=1)


def _pool(
    mode: PoolingMode, hidden_RLD: torch.Tensor, counts_RL: torch.Tensor, lengths_R: torch.Tensor
) -> torch.Tensor:
    rows_R = torch.arange(len(lengths_R), device=hidden_RLD.device)
    counts_RL1 = counts_RL.unsqueeze(2)
    match mode:
        case PoolingMode.CLS:
            return hidden_RLD[:, 0]
        case PoolingMode.LAST:
            return hidden_RLD[rows_R, lengths_R - 1]
        case PoolingMode.MAX:
            return hidden_RLD.masked_fill(~counts_RL1, float("-inf")).amax(dim=1)
        case PoolingMode.MEAN:
            return _sum(hidden_RLD, counts_RL1) / counts_RL.sum(dim=1, keepdim=True)
        case PoolingMode.MEAN_BY_ROOT:
            return _sum(hidden_RLD, counts_RL1) / counts_RL.sum(dim=1, keepdim=True).sqrt()
        case PoolingMode.WEIGHTED_MEAN:
            weights_RL = counts_RL * torch.arange(1, hidden_RLD.shape[1] + 1, device=hidden_RLD.device)
            return _sum(hidden_RLD * weights_RL.unsqueeze(2), counts_RL1) / weights_RL.sum(dim=1, keepdim=True)


def _sum(hidden_RLD: torch.Tensor, counts_RL1: torch.Tensor) -> torch.Tensor:
    # Padding may hold anything, also NaN, so it is replaced and not multiplied.
    return hidden_RLD.masked_fill(~counts_RL1, 0.0).sum(dim=1)
