"""Puts the stages into their order. A new stage takes its place in the tuple of `build_stages`."""

import torch

from textmill_shard.sampling.allowed_ids import AllowedIds
from textmill_shard.sampling.bad_sequences import BadSequences
from textmill_shard.sampling.bias import Bias
from textmill_shard.sampling.count_penalties import CountPenalties
from textmill_shard.sampling.dry import Dry
from textmill_shard.sampling.forced_ids import ForcedIds
from textmill_shard.sampling.grammar_mask import GrammarMask
from textmill_shard.sampling.min_new_tokens import MinNewTokens
from textmill_shard.sampling.repeated_ngrams import RepeatedNgrams
from textmill_shard.sampling.repetition_penalty import RepetitionPenalty
from textmill_shard.sampling.stage import Stage
from textmill_shard.sampling.watermark import Watermark, WatermarkKey


def build_stages(
    *, num_slots: int, device: torch.device, grammar_mask: GrammarMask, watermark: WatermarkKey
) -> tuple[Stage, ...]:
    """Return the stages in the order in which they change scores.

    A stage sees the scores that the stages before it have made. Only the watermark comes after the masks, because an
    amount that is added to minus infinity changes nothing.
    """
    return (
        RepetitionPenalty(num_slots=num_slots, device=device),
        CountPenalties(num_slots=num_slots, device=device),
        Dry(num_slots=num_slots, device=device),
        Bias(num_slots=num_slots, device=device),
        AllowedIds(num_slots=num_slots, device=device),
        RepeatedNgrams(num_slots=num_slots, device=device),
        BadSequences(num_slots=num_slots, device=device),
        MinNewTokens(num_slots=num_slots, device=device),
        ForcedIds(num_slots=num_slots),
        grammar_mask,
        Watermark(num_slots=num_slots, device=device, key=watermark),
    )
