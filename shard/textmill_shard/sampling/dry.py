"""DRY ("don't repeat yourself"): a token that would lengthen a repetition loses logits, more for a longer repetition.

For a token t, let n be the length of the longest end of the text so far that also stands earlier in the text, with t
behind it. Such an end reaches back to the last sequence breaker at most. For n >= allowed_length, t loses
`multiplier * base ** (n - allowed_length)` logits. Breakers themselves lose nothing. The formula is P. Weidmann's, from
text-generation-webui (pull request 5677).

S slots, G rows, T tokens of the longest text.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.sampling.slot_lists import SlotLists
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import NO_IDS, IdArray
from textmill_shard.slots.sampling_params import SamplingParams

LARGEST_LOSS = 1e30  # logits; finite, so that the only token that a grammar allows can still be drawn
_NOTHING = -1  # equals no id; stands for the breakers of a text, and behind the end of a list


class Dry:
    """Takes the losses off. Prompt and output both count as the text.

    For each slot the stage has the ids of the text, with `_NOTHING` in the place of breakers, and for each place of the
    text the length of the longest end of the text that also ends at this place. A new token changes the length of each
    place, and the new length follows from the old length of the place before. So a step takes time in proportion to the
    length of the text.
    """

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        self._ids = SlotLists(num_slots=num_slots, dtype=torch.int64, device=device)
        self._lengths = SlotLists(num_slots=num_slots, dtype=torch.int64, device=device)  # 0 at the last place
        self._num_ids_S = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._breakers = SlotLists(num_slots=num_slots, dtype=torch.int64, device=device)
        self._multipliers_S = torch.zeros(num_slots, dtype=torch.float64, device=device)
        self._bases_S = torch.ones(num_slots, dtype=torch.float64, device=device)
        self._allowed_lengths_S = torch.ones(num_slots, dtype=torch.int64, device=device)

    def wants(self, params: SamplingParams) -> bool:
        return params.dry_multiplier > 0.0

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        ids = np.concatenate([tokens.prompt_ids, tokens.output_ids])
        ids = np.where(np.isin(ids, params.dry_breaker_ids), _NOTHING, ids)
        self._ids.write(slot, ids, filling=_NOTHING)
        self._lengths.write(slot, shared_ends(ids.tolist()))
        self._num_ids_S[slot] = len(ids)
        self._breakers.write(slot, params.dry_breaker_ids, filling=_NOTHING)
        self._multipliers_S[slot] = params.dry_multiplier
        self._bases_S[slot] = params.dry_base
        self._allowed_lengths_S[slot] = params.dry_allowed_length

    def apply(self, scores_NV: Tensor, rows: StageRows) -> None:
        slots_G = rows.slots_G
        next_ids_GT, lengths_GT = self._ids.of(rows)[:, 1:], self._lengths.cut(rows, self._width(rows))[:, :-1]
        excess_GT = lengths_GT - self._allowed_lengths_S[slots_G].unsqueeze(-1)
        losses_GT = self._multipliers_S[slots_G].unsqueeze(-1) * self._bases_S[slots_G].unsqueeze(-1) ** excess_GT
        losses_GT = losses_GT.clamp_(max=LARGEST_LOSS) * ((excess_GT >= 0) & (next_ids_GT != _NOTHING))
        losses_GV = torch.zeros(len(slots_G), scores_NV.shape[-1], device=scores_NV.device)
        losses_GV.scatter_reduce_(1, next_ids_GT.clamp(min=0), losses_GT.float(), "amax")
        if rows.on_host.is_all:
            scores_NV -= losses_GV
        else:
            scores_NV[rows.rows_G] -= losses_GV

    def append(self, rows: StageRows, tokens_G: Tensor) -> IdArray:
        slots_G, width = rows.slots_G, self._width(rows)
        # A repetition that ends at a place with the new token is one longer than the repetition that ended one place
        # before, because both texts have grown by this token.
        lengths_GT = torch.nn.functional.pad(self._lengths.cut(rows, width)[:, :-1] + 1, (1, 0), value=1)
        lengths_GT *= self._ids.of(rows) == tokens_G.unsqueeze(-1)  # no breaker matches _NOTHING
        self._lengths.values_SE[slots_G, :width] = lengths_GT
        self._ids.sizes_S[rows.on_host.slots_G] += 1
        self._ids.make_room(self._width(rows))
        self._lengths.make_room(self._width(rows))
        num_ids_G = self._num_ids_S[slots_G]
        is_breaker_G = (self._breakers.of(rows) == tokens_G.unsqueeze(-1)).any(-1)
        self._ids.values_SE[slots_G, num_ids_G] = tokens_G.masked_fill(is_breaker_G, _NOTHING)
        self._num_ids_S[slots_G] = num_ids_G + 1
        return NO_IDS

    def _width(self, rows: StageRows) -> int:
        """Return the number of tokens of the longest text among the rows."""
        return int(self._ids.sizes_S[rows.on_host.slots_G].max())


def shared_ends(ids: Sequence[int]) -> list[int]:
    """Return for each place the length of the longest end of `ids` that also ends there, and 0 for the last place.

    The id at the place belongs to the repetition, as its last id. `_NOTHING` equals no id, not even `_NOTHING`. The
    result is the Z-function of the text read backwards. The time is linear in the length of the text, because each
    comparison that succeeds moves `right` on.
    """
    backwards = ids[::-1]
    num_ids = len(backwards)
    lengths = [0] * num_ids
    left = right = 0  # borders of the stretch that equals a beginning of `backwards` and reaches farthest
    for place in range(1, num_ids):
        length = min(right - place, lengths[place - left]) if place < right else 0
        while (
            place + length < num_ids
            and backwards[length] == backwards[place + length]
            and backwards[length] != _NOTHING
        ):
            length += 1
        lengths[place] = length
        if place + length > right:
            left, right = place, place + length
    return lengths[::-1]
