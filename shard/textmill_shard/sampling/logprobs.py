"""Log-probabilities of the model's own logits, before penalties, bias, masks and temperature.

N rows, T prompt positions, D hidden width, V vocabulary. Natural logarithm, float32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from textmill_shard.sampling.candidates import best_scores

SLICE_TOKENS = 256  # prompt positions whose logits are computed together
SPARE_FOR_TIES = 16  # candidates beyond the number asked for, so that ties at the cut mostly lie among them


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The alternatives at one position, on the host: ids with their log-probabilities, the best first.

    Ids with equal log-probabilities stand in rising order. All ids that tie at the cut are present, so that there can
    be more entries than the request asked for. Where the logits hold a NaN, the ids mean nothing and the
    log-probabilities are NaN.
    """

    ids: NDArray[np.uint32]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of prompt tokens, on the host.

    `logprobs[i]` is log p(targets[i] | all tokens before it), and NaN where the logits were not finite. `top` has one
    entry per position, and is empty when the request asked for no alternatives.
    """

    logprobs: NDArray[np.float32]
    top: tuple[TopTokens, ...]


def chosen_logprobs(logits_NV: Tensor, tokens_N: Tensor, log_mass_N: Tensor) -> Tensor:
    """Return the log-softmax of each row at the given id, [N] float32. `log_mass_N` is the logsumexp of each row."""
    return (logits_NV.gather(-1, tokens_N.unsqueeze(-1)).squeeze(-1) - log_mass_N).float()


@dataclass(frozen=True, slots=True)
class TopDraft:
    """The best scores of N rows on the device, of which `finish_top` makes the alternatives on the host.

    `values_NK` are the scores, the best first, and `logprobs_NK` their log-probabilities. Row r asked for `counts[r]`
    alternatives (>= 1).
    """

    values_NK: Tensor
    ids_NK: Tensor  # int64
    logprobs_NK: Tensor
    counts: Sequence[int]
    vocab_size: int
    logits_NV: Tensor | None  # None: ranks that share a vocabulary have the logits in parts
    log_mass_N: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the host reads for `finish_top`."""
        return self.values_NK, self.ids_NK, self.logprobs_NK


def num_drafted(counts: Sequence[int], vocab_size: int) -> int:
    """Return how many of the best ids of each row a draft holds."""
    return min(max(counts) + SPARE_FOR_TIES, vocab_size)


def draft_top(logits_NV: Tensor, counts: Sequence[int], log_mass_N: Tensor, known_NC: Tensor | None = None) -> TopDraft:
    """Find the best ids of each row. Waits for nothing on the device.

    `known_NC` (int64) are best ids of each row, the best first, where a first pass has found some.
    """
    vocab_size = logits_NV.shape[-1]
    values_NK, ids_NK = best_scores(logits_NV, num_drafted(counts, vocab_size), known_NC)
    logprobs_NK = (values_NK - log_mass_N.unsqueeze(-1)).float()
    return TopDraft(values_NK, ids_NK, logprobs_NK, counts, vocab_size, logits_NV, log_mass_N)


def tied_rows(draft: TopDraft, values_NK: NDArray[Any]) -> list[int]:
    """Return the rows in which more ids tie at the cut than the draft holds, from its values on the host."""
    if values_NK.shape[-1] == draft.vocab_size:
        return []
    return [row for row, count in enumerate(draft.counts) if values_NK[row, -1] >= values_NK[row, count - 1]]


def finish_top(
    draft: TopDraft,
    values_NK: NDArray[Any],
    ids_NK: NDArray[np.int64],
    logprobs_NK: NDArray[np.float32],
    *,
    logits_by_row: Mapping[int, Tensor] | None = None,
) -> tuple[TopTokens, ...]:
    """Return the alternatives of each row, from the tensors of the draft on the host.

    The host looks at the device again only for the rows that `tied_rows` names. `logits_by_row` has the logits [V] of
    these rows, where the draft has none.
    """
    tied = set(tied_rows(draft, values_NK))
    alternatives = []
    for row, count in enumerate(draft.counts):
        if row in tied:
            logits_V = _logits_of(draft, row) if logits_by_row is None else logits_by_row[row]
            ids_E = (logits_V >= draft.values_NK[row, count - 1]).nonzero().flatten()
            logprobs_E = (logits_V[ids_E] - draft.log_mass_N[row]).float().cpu().numpy()
            alternatives.append(_in_order(ids_E.cpu().numpy(), logprobs_E))
        else:
            size = int((values_NK[row] >= values_NK[row, min(count, draft.vocab_size) - 1]).sum())
            alternatives.append(_in_order(ids_NK[row, :size], logprobs_NK[row, :size]))
    return tuple(alternatives)


def _logits_of(draft: TopDraft, row: int) -> Tensor:
    assert draft.logits_NV is not None, "the ranks have to lay rows together in which more ids tie than travel"
    return draft.logits_NV[row]


def top_tokens(logits_NV: Tensor, counts: Sequence[int], log_mass_N: Tensor) -> tuple[TopTokens, ...]:
    """Return the `counts[row]` (>= 1) best ids of each row with their log-probabilities. Copies to the host."""
    draft = draft_top(logits_NV, counts, log_mass_N)
    return finish_top(draft, *(tensor.cpu().numpy() for tensor in draft.tensors))


def _in_order(ids_E: NDArray[np.int64], logprobs_E: NDArray[np.float32]) -> TopTokens:
    """Sort by falling log-probability, and ids with equal log-probabilities by rising id."""
    order = np.lexsort((ids_E, -logprobs_E))
    return TopTokens(ids=ids_E[order].astype(np.uint32), logprobs=logprobs_E[order])


def prompt_logprobs(
    project: Callable[[Tensor], Tensor],
    hidden_TD: Tensor,
    targets_T: Tensor,
    top_n: int = 0,
    *,
    slice_tokens: int = SLICE_TOKENS,
) -> PromptLogprobs:
    """Return the log-probabilities of `targets_T` (int64), the ids that follow the positions of `hidden_TD`.

    `project` turns hidden states [n, D] into logits [n, V] float32. The function calls `project` with at most
    `slice_tokens` rows at a time, so that no tensor of [T, V] exists.
    """
    logprobs: list[NDArray[np.float32]] = []
    top: list[TopTokens] = []
    for start in range(0, len(targets_T), slice_tokens):
        part = slice(start, start + slice_tokens)
        logits_nV = project(hidden_TD[part])
        log_mass_n = logits_nV.logsumexp(-1)
        logprobs.append(chosen_logprobs(logits_nV, targets_T[part], log_mass_n).cpu().numpy())
        if top_n > 0:
            top.extend(top_tokens(logits_nV, [top_n] * len(logits_nV), log_mass_n))
    joined = np.concatenate(logprobs) if logprobs else np.zeros(0, dtype=np.float32)
    return PromptLogprobs(logprobs=joined, top=tuple(top))
