"""The definition of DRY, with loops over all ends of a text and over all places where such an end may stand."""

from collections.abc import Sequence

from textmill_shard.slots.sampling_params import SamplingParams


def dry_losses(text: Sequence[int], params: SamplingParams, vocab: int) -> list[float]:
    """Return the logits that each token loses, by a try of each token, each length of an end, and each place."""
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
