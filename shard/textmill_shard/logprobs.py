"""Log-probabilities of the model's own logits, before penalties, bias, masks and temperature.

N rows, T prompt positions, D hidden width, V vocabulary. Natural logarithm, float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Alternatives at one position on the host: uint32 ids, best first (equal ones by id), and their log-probabilities.

    Ties at the cut are all present, so there can be more than were asked for. Where the logits hold a NaN, the ids
    mean nothing and the log-probabilities are NaN.
    """

    ids: NDArray[np.uint32]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """`logprobs[i]` is log p(targets[i] | all before it), float32 [T] on the host; NaN where logits were not finite.

    `top` has one entry per position, or none at all when no alternatives were asked for.
    """

    logprobs: NDArray[np.float32]
    top: tuple[TopTokens, ...]


def chosen_logprobs(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """[N] float32: log-softmax at the given ids, without building the other V - 1 columns."""
    chosen_N = logits_NV.gather(-1, tokens_N.unsqueeze(-1)).squeeze(-1)
    return (chosen_N - logits_NV.logsumexp(-1)).float()


def top_tokens(logits_NV: Tensor, counts: Sequence[int]) -> tuple[TopTokens, ...]:
    """The `counts[row]` (>= 1) best ids of each row with their log-probabilities. Copies to the host."""
    num_rows, vocab_size = logits_NV.shape
    cuts_N = torch.tensor([min(count, vocab_size) - 1 for count in counts], device=logits_NV.device)
    best_NK = logits_NV.topk(int(cuts_N.max()) + 1, dim=-1).values
    thresholds_N1 = best_NK.gather(-1, cuts_N.unsqueeze(-1))
    # Row by row and ascending by id, which the stable sort below keeps among equals.
    rows_E, ids_E = (logits_NV >= thresholds_N1).nonzero(as_tuple=True)
    logprobs_E = (logits_NV[rows_E, ids_E] - logits_NV.logsumexp(-1)[rows_E]).float().cpu().numpy()
    host_ids_E = ids_E.cpu().numpy().astype(np.uint32)
    sizes = torch.bincount(rows_E, minlength=num_rows).tolist()
    found = []
    start = 0
    for size in sizes:
        row_logprobs = logprobs_E[start : start + size]
        order = np.argsort(-row_logprobs, kind="stable")
        found.append(TopTokens(ids=host_ids_E[start : start + size][order], logprobs=row_logprobs[order]))
        start += size
    return tuple(found)


def prompt_logprobs(
    project: Callable[[Tensor], Tensor],
    hidden_TD: Tensor,
    targets_T: Tensor,
    top_n: int = 0,
    *,
    slice_tokens: int = 256,
) -> PromptLogprobs:
    """Log-probabilities of `targets_T` (int64), the ids that follow the positions of `hidden_TD`.

    `project` turns hidden states [n, D] into logits [n, V] float32; it is called with at most `slice_tokens` rows, so
    no [T, V] tensor exists.
    """
    logprobs: list[NDArray[np.float32]] = []
    top: list[TopTokens] = []
    for start in range(0, len(targets_T), slice_tokens):
        part = slice(start, start + slice_tokens)
        logits_nV = project(hidden_TD[part])
        logprobs.append(chosen_logprobs(logits_nV, targets_T[part]).cpu().numpy())
        if top_n > 0:
            top.extend(top_tokens(logits_nV, [top_n] * len(logits_nV)))
    joined = np.concatenate(logprobs) if logprobs else np.zeros(0, dtype=np.float32)
    return PromptLogprobs(logprobs=joined, top=tuple(top))
