"""What a search by beams does to log-probabilities: the rules of a request, for sequences that change their past.

The stages of the sampler do the same for requests that only grow. The order of the rules, and that they see
log-probabilities instead of logits, is that of transformers' `generate`.

W sequences, L tokens of each so far (without what an encoder reads), V vocabulary.
"""

import torch
from torch import Tensor

from textmill_shard.sampling.forced_ids import force
from textmill_shard.sampling.repeated_ngrams import forbid_ngrams
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.sampling_params import SamplingParams


class BeamScores:
    """The rules of one request. `apply` changes the log-probabilities of the next tokens in place."""

    def __init__(self, params: SamplingParams, text: SlotText, device: torch.device) -> None:
        self._params = params
        self._num_prompt = len(text.prompt_ids)
        self._encoder_L = torch.tensor(text.encoder_ids, dtype=torch.int64, device=device)
        self._end_ids = torch.tensor(params.end_ids, dtype=torch.int64, device=device)

    def apply(self, scores_WV: Tensor, texts_WL: Tensor) -> None:
        params = self._params
        num_outputs = texts_WL.shape[1] - self._num_prompt
        if params.repetition_penalty != 1.0:
            seen_WL = scores_WV.gather(1, texts_WL)
            penalty = params.repetition_penalty
            scores_WV.scatter_(1, texts_WL, torch.where(seen_WL < 0, seen_WL * penalty, seen_WL / penalty))
        for size, source in ((params.no_repeat_ngram_size, None), (params.encoder_no_repeat_ngram_size, 1)):
            if size:
                for scores_V, text_L in zip(scores_WV, texts_WL, strict=True):
                    forbid_ngrams(scores_V, text_L, text_L if source is None else self._encoder_L, size)
        self._forbid_sequences(scores_WV, texts_WL)
        if num_outputs < params.min_new_tokens:
            scores_WV[:, self._end_ids] = -torch.inf
        for ids, place in ((params.forced_first_ids, 0), (params.forced_last_ids, params.max_new_tokens - 1)):
            if ids and num_outputs == place:
                for scores_V in scores_WV:
                    force(scores_V, ids)

    def _forbid_sequences(self, scores_WV: Tensor, texts_WL: Tensor) -> None:
        """Make the last id of each bad sequence impossible behind the ids before it, where the output has them."""
        num_outputs = texts_WL.shape[1] - self._num_prompt
        for *before, last in self._params.bad_sequences:
            if len(before) > num_outputs:
                continue
            end_Wn = texts_WL[:, texts_WL.shape[1] - len(before) :]
            is_near_W = (end_Wn == torch.tensor(before, dtype=torch.int64, device=end_Wn.device)).all(-1)
            scores_WV[:, last].masked_fill_(is_near_W, -torch.inf)
