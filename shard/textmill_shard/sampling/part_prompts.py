"""Log-probabilities of prompt tokens where ranks share a vocabulary: no rank has whole rows of logits.

n prompt positions, D hidden width, V ids of this rank, P ranks, K best logits of a position.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.sampling.logprobs import (
    SLICE_TOKENS,
    PromptLogprobs,
    TopDraft,
    TopTokens,
    finish_top,
    num_drafted,
    tied_rows,
)
from textmill_shard.sampling.part_rows import best_of_part, floats, join_best, pack, unpack


def part_prompt_logprobs(
    project_part: Callable[[Tensor], Tensor],
    vocabulary: SharedVocabulary,
    hidden_TD: Tensor,
    targets_T: Tensor,
    top_n: int = 0,
    *,
    slice_tokens: int = SLICE_TOKENS,
) -> PromptLogprobs:
    """Return what `prompt_logprobs` returns. All ranks call this with equal arguments, and get equal results.

    `project_part` turns hidden states [n, D] into the logits [n, V] float32 of the ids of this rank. Of each position
    a rank sends its normaliser, the logit of the target (-inf where another rank has the target) and its best logits.
    A position in which more ids tie at the cut than have travelled is laid together whole; all ranks find these
    positions in equal numbers.
    """
    logprobs = [np.zeros(0, dtype=np.float32)]
    top: list[TopTokens] = []
    for start in range(0, len(targets_T), slice_tokens):
        part = slice(start, start + slice_tokens)
        rated = _rate(project_part(hidden_TD[part]), vocabulary, targets_T[part], top_n)
        logprobs.append(rated.logprobs)
        top.extend(rated.top)
    return PromptLogprobs(logprobs=np.concatenate(logprobs), top=tuple(top))


def _rate(logits_nV: Tensor, vocabulary: SharedVocabulary, targets_n: Tensor, top_n: int) -> PromptLogprobs:
    num_rows = len(logits_nV)
    places_n = targets_n - vocabulary.first_id
    is_own_n = (places_n >= 0) & (places_n < vocabulary.num_ids)
    own_n = logits_nV.gather(1, places_n.clamp(0, vocabulary.num_ids - 1).unsqueeze(1)).squeeze(1)
    tensors = [logits_nV.logsumexp(-1), own_n.masked_fill(~is_own_n, -torch.inf)]
    shapes: list[tuple[int, ...]] = [(num_rows,), (num_rows,)]
    counts, num_best = [top_n] * num_rows, 0
    if top_n > 0:
        num_best = num_drafted(counts, vocabulary.vocab_size)
        best = best_of_part(logits_nV, num_best, vocabulary)
        tensors += [best.ids, best.scores]
        shapes += [tuple(best.ids.shape)] * 2
    masses_Pn, targets_Pn, *bests = unpack(vocabulary.gather(pack(tensors)), shapes)
    log_mass_n = floats(masses_Pn).double().logsumexp(0).float()
    logprobs_n = floats(targets_Pn).amax(0) - log_mass_n
    if not bests:
        return PromptLogprobs(logprobs_n.cpu().numpy(), ())
    ids_PnK, scores_PnK = bests
    joined, _ = join_best(ids_PnK.long(), floats(scores_PnK), num_best)
    logprobs_nK = joined.scores - log_mass_n.unsqueeze(-1)
    draft = TopDraft(joined.scores, joined.ids, logprobs_nK, counts, vocabulary.vocab_size, None, log_mass_n)
    arrays = [tensor.cpu().numpy() for tensor in draft.tensors]
    tied = tied_rows(draft, arrays[0])
    whole = dict(zip(tied, vocabulary.join_rows(logits_nV[tied]), strict=True)) if tied else {}
    return PromptLogprobs(logprobs_n.cpu().numpy(), finish_top(draft, *arrays, logits_by_row=whole))
