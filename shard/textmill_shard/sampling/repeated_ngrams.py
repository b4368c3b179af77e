"""No n-gram twice: n tokens in a row that the text has already cannot stand in it again.

The token that would complete such an n-gram is impossible. `no_repeat_ngram_size` looks at the text itself, and
`encoder_no_repeat_ngram_size` at the text that the encoder has read. The formulas are those of transformers'
`NoRepeatNGramLogitsProcessor` and `EncoderNoRepeatNGramLogitsProcessor`.

S slots, G rows, L tokens of a text.
"""

import numpy as np
import torch
from torch import Tensor

from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.sampling.slot_lists import SlotLists
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import NO_IDS, IdArray
from textmill_shard.slots.sampling_params import SamplingParams


def forbid_ngrams(scores_V: Tensor, text_L: Tensor, source_L: Tensor, size: int) -> None:
    """Make each token impossible that completes, behind `text_L`, an n-gram of `size` tokens of `source_L`.

    `scores_V` is float32 and changes in place; both texts are int64. Waits for no device.
    """
    num_before = size - 1
    if len(text_L) < num_before or len(source_L) < size:
        return
    ngrams_Ln = source_L.unfold(0, size, 1)
    end_n = text_L[len(text_L) - num_before :]
    is_begun_L = (ngrams_Ln[:, :-1] == end_n).all(-1)
    amounts_L = torch.zeros(len(ngrams_Ln), device=scores_V.device).masked_fill_(is_begun_L, -torch.inf)
    scores_V.index_put_((ngrams_Ln[:, -1],), amounts_L, accumulate=True)


class RepeatedNgrams:
    """Makes the last ids of n-grams impossible. Each slot has the ids of its text, and those of the encoder's text."""

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        self._ids = SlotLists(num_slots=num_slots, dtype=torch.int64, device=device)
        self._encoder_ids = SlotLists(num_slots=num_slots, dtype=torch.int64, device=device)
        self._sizes_S = np.zeros(num_slots, dtype=np.int64)  # tokens of an n-gram of the text, 0 = any may stand twice
        self._encoder_sizes_S = np.zeros(num_slots, dtype=np.int64)

    def wants(self, params: SamplingParams) -> bool:
        return params.no_repeat_ngram_size > 0 or params.encoder_no_repeat_ngram_size > 0

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        self._ids.write(slot, np.concatenate([tokens.prompt_ids, tokens.output_ids]))
        self._encoder_ids.write(slot, tokens.encoder_ids)
        self._sizes_S[slot] = params.no_repeat_ngram_size
        self._encoder_sizes_S[slot] = params.encoder_no_repeat_ngram_size

    def apply(self, scores_NV: Tensor, rows: StageRows) -> None:
        for row, slot in zip(rows.on_host.rows_G.tolist(), rows.on_host.slots_G.tolist(), strict=True):
            text_L = self._ids.values_SE[slot, : int(self._ids.sizes_S[slot])]
            for sizes_S, source in ((self._sizes_S, self._ids), (self._encoder_sizes_S, self._encoder_ids)):
                if sizes_S[slot]:
                    source_L = source.values_SE[slot, : int(source.sizes_S[slot])]
                    forbid_ngrams(scores_NV[row], text_L, source_L, int(sizes_S[slot]))

    def append(self, rows: StageRows, tokens_G: Tensor) -> IdArray:
        slots_G = rows.on_host.slots_G
        self._ids.sizes_S[slots_G] += 1
        self._ids.make_room(int(self._ids.sizes_S[slots_G].max()))
        for place, slot in enumerate(slots_G.tolist()):
            self._ids.values_SE[slot, int(self._ids.sizes_S[slot]) - 1] = tokens_G[place]
        return NO_IDS
