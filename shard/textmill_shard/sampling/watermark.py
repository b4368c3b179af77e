"""A watermark in sampled text: at each step a part of the vocabulary, chosen by the token before, is a little likelier.

J. Kirchenbauer et al., "A Watermark for Large Language Models" (ICML 2023): the soft red list. `detect_watermark` is
for users of the package: it needs the token ids of a text and the gamma it was made with, and no model. What its result
means is in docs/watermark.md.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from textmill_shard.sampling.row_selection import StageRows
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.plan import NO_IDS, IdArray
from textmill_shard.slots.sampling_params import SamplingParams

DEFAULT_GAMMA = 0.5
DEFAULT_DELTA = 2.0
# Fixed for good: texts are to be recognised later.
_KEY = 0x7E87_313D
_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32))  # shift, multiplier as a signed word
_LAST_SHIFT = 16
_SIGN = -(2**31)


@dataclass(frozen=True, slots=True)
class WatermarkKey:
    """`gamma`: part of the vocabulary that is green, above 0 and below 1. `delta`: what green logits gain."""

    gamma: float = DEFAULT_GAMMA
    delta: float = DEFAULT_DELTA


DEFAULT_KEY = WatermarkKey()


class Watermark:
    """The stage of the sampler: the green list behind a slot's last token gains logits.

    Before the first output token the last token is the prompt's.
    """

    def __init__(self, *, num_slots: int, device: torch.device, key: WatermarkKey) -> None:
        self._key = key
        self._last_ids_S = torch.zeros(num_slots, dtype=torch.int64, device=device)

    def wants(self, params: SamplingParams) -> bool:
        return params.watermark

    def admit(self, slot: int, params: SamplingParams, tokens: SlotText) -> None:
        self._last_ids_S[slot] = int([*tokens.prompt_ids[-1:], *tokens.output_ids[-1:]][-1])

    def apply(self, scores_NV: Tensor, rows: StageRows) -> None:
        ids_1V = torch.arange(scores_NV.shape[-1], device=scores_NV.device).unsqueeze(0)
        last_ids_G1 = self._last_ids_S[rows.slots_G].unsqueeze(-1)
        gain_GV = is_green(last_ids_G1, ids_1V, self._key.gamma) * self._key.delta
        if rows.on_host.is_all:
            scores_NV += gain_GV
        else:
            scores_NV[rows.rows_G] += gain_GV

    def append(self, rows: StageRows, tokens_G: Tensor) -> IdArray:
        self._last_ids_S[rows.slots_G] = tokens_G
        return NO_IDS


@dataclass(frozen=True, slots=True)
class WatermarkEvidence:
    """How green a text is. `z_score`: standard deviations above a text that knows nothing of the watermark.

    `p_value`: how often such a text looks at least as green. `num_scored` counts the distinct pairs of neighbours.
    """

    num_scored: int
    num_green: int
    z_score: float
    p_value: float


def is_green(previous: Tensor, ids: Tensor, gamma: float) -> Tensor:
    """Whether each of `ids` is green behind `previous`: bool, int64 tensors that broadcast. On any device."""
    id_words = _mix((ids + 1).to(torch.int32))
    previous_words = _mix((previous ^ _KEY).to(torch.int32))
    # Without its sign bit a signed word compares as an unsigned one of 2**31 more.
    return _mix(id_words ^ previous_words).bitwise_xor_(_SIGN) < int(gamma * 2.0**32) + _SIGN


def detect_watermark(
    token_ids: Sequence[int], *, gamma: float = DEFAULT_GAMMA, previous_id: int | None = None
) -> WatermarkEvidence:
    """Measure a text by its token ids. `previous_id` is the last token before it (the prompt's), where that is known.

    Equal pairs of neighbours count once: a text that repeats itself says nothing new. A z-score above 4 comes by chance
    in one of 30,000 texts. Raises ValueError for a gamma outside 0 .. 1 and for texts without a pair.
    """
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma is {gamma:g}, wanted a number above 0 and below 1")
    ids = list(token_ids) if previous_id is None else [previous_id, *token_ids]
    pairs = sorted(set(itertools.pairwise(ids)))
    if not pairs:
        raise ValueError(f"the text has {len(ids)} tokens, wanted at least 2")
    previous_P, ids_P = torch.tensor(pairs, dtype=torch.int64).unbind(-1)
    num_green = int(is_green(previous_P, ids_P, gamma).sum())
    z_score = (num_green - gamma * len(pairs)) / math.sqrt(len(pairs) * gamma * (1.0 - gamma))
    return WatermarkEvidence(
        num_scored=len(pairs),
        num_green=num_green,
        z_score=z_score,
        p_value=0.5 * math.erfc(z_score / math.sqrt(2.0)),
    )


def _mix(words: Tensor) -> Tensor:
    """Spread 32-bit words evenly and one to one: int32, changed in place; products wrap.

    Rounds of "shift, xor, multiply"; the constants are C. Wellons', found by a search for the least bias. 20 rows
    of 49,152 take 10 ms on one core; in 64 bits, with fresh memory for each operation, 36.
    """
    for shift, multiplier in _ROUNDS:
        words.bitwise_xor_(_shifted(words, shift)).mul_(multiplier)
    return words.bitwise_xor_(_shifted(words, _LAST_SHIFT))


def _shifted(words: Tensor, shift: int) -> Tensor:
    """Shift right without dragging the sign along."""
    return (words >> shift).bitwise_and_((1 << (32 - shift)) - 1)
