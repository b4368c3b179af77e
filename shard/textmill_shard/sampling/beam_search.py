"""The choice of a search by beams: which sequences go on, which are finished, and when the search is over.

Each of W sequences has the sum of the log-probabilities of its tokens. A step looks at all continuations of all
sequences, and goes on with the best W that do not end. Of those that end, the ones among the best W are finished, with
the score sum / n^length_penalty for n output tokens, and the best W finished ones are kept. The rules for the end are
those of `EarlyStopping`. Choices and arithmetic follow transformers' `generate` (its documentation of beam search and
of `GenerationConfig`), so that both find the same tokens.

W sequences, K candidates of a step, L tokens of a sequence, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from textmill_shard.sampling.beam_scores import BeamScores
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import Beams, EarlyStopping, IdArray
from textmill_shard.slots.sampling_params import SamplingParams

_WORST = -1.0e9  # score of a sequence that is none; far below each sum, and finite


@dataclass(frozen=True, slots=True)
class BeamChoice:
    """The sequences that go on: number w continues `parents_W[w]` by `tokens_W[w]`. Means nothing after the end."""

    parents_W: Sequence[int]
    tokens_W: Sequence[int]
    is_over: bool


class BeamSearch:
    """The sequences of one search. `params` has `end_ids` and `max_new_tokens` filled in."""

    def __init__(self, beams: Beams, params: SamplingParams, text: SlotText, device: torch.device) -> None:
        self._beams = beams
        self._num_prompt = len(text.prompt_ids)
        self._max_new_tokens = params.max_new_tokens
        self._end_ids = torch.tensor(params.end_ids, dtype=torch.int64, device=device)
        self._scores = BeamScores(params, text, device)
        num_beams = beams.num_beams
        prompt_L = torch.tensor(text.prompt_ids, dtype=torch.int64, device=device)
        self._texts_WL = prompt_L.expand(num_beams, -1)
        # At first all sequences are equal, so the continuations of the first one alone count.
        self._sums_W = torch.full((num_beams,), _WORST, device=device)
        self._sums_W[0] = 0.0
        self._finished: list[Tensor] = [prompt_L[:0]] * num_beams  # output ids, best first
        self._finished_scores_W = torch.full((num_beams,), _WORST, device=device)
        self._is_finished_W = torch.zeros(num_beams, dtype=torch.bool, device=device)
        self._can_improve = True

    def advance(self, logits_WV: Tensor, *, is_late: bool = False) -> BeamChoice:
        """Choose the next tokens. `logits_WV` (float32) is of the sequences of the last choice, in their order.

        `is_late`: every sequence counts as finished with its next token. Waits for the device.
        """
        beams, num_beams = self._beams, self._beams.num_beams
        log_probs_WV = torch.log_softmax(logits_WV, dim=-1)
        self._scores.apply(log_probs_WV, self._texts_WL)
        sums_WV = log_probs_WV + self._sums_W[:, None]
        # As many candidates as end at most, and W more that do not.
        num_candidates = min(max(2, 1 + len(self._end_ids)) * num_beams, sums_WV.numel())
        sums_K, places_K = torch.topk(sums_WV.flatten(), num_candidates)
        parents_K, tokens_K = places_K // sums_WV.shape[1], places_K % sums_WV.shape[1]
        texts_KL = torch.cat([self._texts_WL[parents_K], tokens_K[:, None]], dim=1)
        num_outputs = texts_KL.shape[1] - self._num_prompt
        is_end_K = torch.isin(tokens_K, self._end_ids)
        if is_late or num_outputs >= self._max_new_tokens:
            is_end_K = torch.ones_like(is_end_K)

        open_sums_K = sums_K + is_end_K.float() * _WORST
        chosen_W = torch.topk(open_sums_K, num_beams).indices
        self._texts_WL, self._sums_W = texts_KL[chosen_W], open_sums_K[chosen_W]
        self._finish(texts_KL, sums_K, is_end_K, num_outputs)

        best_length = num_outputs
        if beams.early_stopping is EarlyStopping.NEVER and beams.length_penalty > 0.0:
            best_length = self._max_new_tokens
        best_open = self._sums_W[:1] / best_length**beams.length_penalty
        worst_W = torch.where(self._is_finished_W, self._finished_scores_W.min(), _WORST)
        is_full = bool(self._is_finished_W.all()) and beams.early_stopping is EarlyStopping.YES
        self._can_improve = self._can_improve and bool((best_open > worst_W).any())
        is_over = not self._can_improve or is_full or bool(is_end_K.all())
        return BeamChoice(parents_K[chosen_W].tolist(), tokens_K[chosen_W].tolist(), is_over)

    def _finish(self, texts_KL: Tensor, sums_K: Tensor, is_end_K: Tensor, num_outputs: int) -> None:
        """Keep the best finished sequences of those so far and of the candidates that end."""
        beams, num_beams = self._beams, self._beams.num_beams
        is_new_K = is_end_K & (torch.arange(len(is_end_K), device=is_end_K.device) < num_beams)
        scores_K = sums_K / num_outputs**beams.length_penalty
        if beams.early_stopping is EarlyStopping.YES and bool(self._is_finished_W.all()):
            scores_K = scores_K + _WORST
        if not self._can_improve:
            scores_K = scores_K + _WORST
        scores_K = scores_K + (~is_new_K).float() * _WORST
        best_W = torch.topk(torch.cat([self._finished_scores_W, scores_K]), num_beams)
        self._finished_scores_W = best_W.values
        self._is_finished_W = torch.cat([self._is_finished_W, is_new_K])[best_W.indices]
        candidates = [*self._finished, *texts_KL[:, self._num_prompt :]]
        self._finished = [candidates[place] for place in best_W.indices.tolist()]

    def best(self) -> tuple[tuple[IdArray, ...], Sequence[float]]:
        """Return the output ids of the best sequences of a search that is over, best first, and their scores."""
        count = self._beams.num_sequences
        ids = tuple(np.asarray(one.cpu().numpy(), dtype=np.int64) for one in self._finished[:count])
        return ids, self._finished_scores_W[:count].tolist()
