"""The definition of DRY, written out with loops over all ends of a text and all places where they could stand."""

from collections.abc import Sequence

from textmill_shard.slots.sampling_params import SamplingParams


def dry_losses(text: Sequence[int], params: SamplingParams, vocab: int) -> list[float]:
    """What each token loses, by the definition: each length of the end, each place where that stood, each token."""
    found = [0.0] * vocab
    for token in set(text) - set(params.dry_breaker_ids):
        longest = 0
        for length in range(1, len(text)):
            end = list(text[-length:])
            if set(end) & set(params.dry_breaker_ids):
                break
            starts = range(len(text) - length)
            if any([*end, token] == list(text[start : start + length + 1]) for start in starts):
                longest = length
        if longest >= params.dry_allowed_length:
            found[token] = params.dry_multiplier * params.dry_base ** (longest - params.dry_allowed_length)
    return found
