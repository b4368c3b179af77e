"""Noise that depends on the request alone, from a counter-based generator.

The other rows of a batch cannot change the noise of a row, because the generator has no state that rows share.

The generator is Philox4x32-10 of J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011), which passes BigCrush. Key: the request's 64-bit seed. Counter: token id, output position, 0, 0.
An int64 holds each 32-bit word, because torch has few operations on unsigned types. A product of two words wraps modulo
2**64, which keeps all 64 bits of the product.

R rows, C ids per row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from textmill_shard.model.device_copy import to_device

TAIL_ID = 0xFFFFFFFF  # the word that stands for "all other tokens"; never a token id

_MASK = 0xFFFFFFFF
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_KEY_STEP_0 = 0x9E3779B9
_KEY_STEP_1 = 0xBB67AE85
_ROUNDS = 10


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four random words for four counter words and two key words.

    All words are int64 tensors that broadcast, with values from 0 to 2**32 - 1.
    """
    word_0, word_1, word_2, word_3 = counter
    rounds = torch.arange(_ROUNDS, device=word_0.device)
    keys_0 = ((key[0].unsqueeze(-1) + rounds * _KEY_STEP_0) & _MASK).unbind(-1)
    keys_1 = ((key[1].unsqueeze(-1) + rounds * _KEY_STEP_1) & _MASK).unbind(-1)
    for key_0, key_1 in zip(keys_0, keys_1, strict=True):
        product_0 = word_0 * _MULTIPLIER_0
        product_1 = word_2 * _MULTIPLIER_1
        # The shift fills the upper half with copies of the sign bit, and the mask takes them off.
        word_0 = ((product_1 >> 32) ^ word_1 ^ key_0) & _MASK
        word_2 = ((product_0 >> 32) ^ word_3 ^ key_1) & _MASK
        word_1 = product_1 & _MASK
        word_3 = product_0 & _MASK
    return word_0, word_1, word_2, word_3


def seed_words(seeds: Sequence[int], device: torch.device) -> Tensor:
    """Return the low and the high 32-bit word of each unsigned 64-bit seed, [R, 2] int64."""
    return to_device([[seed & _MASK, seed >> 32] for seed in seeds], dtype=torch.int64, device=device)


def uniform(seed_words_R2: Tensor, positions_R: Tensor, ids_RC: Tensor) -> Tensor:
    """Return numbers [R, C] float64 that are evenly spread over the open interval (0, 1), in steps of 2**-52.

    `positions_R` int64 is the number of output tokens before the token that is drawn. `ids_RC` int64 holds token ids,
    or TAIL_ID.
    """
    zero = torch.zeros((), dtype=torch.int64, device=ids_RC.device)
    keys = (seed_words_R2[:, :1], seed_words_R2[:, 1:])
    word_0, word_1, _, _ = philox((ids_RC, positions_R.unsqueeze(-1), zero, zero), keys)
    return (((word_0 << 20) | (word_1 >> 12)).double() + 0.5) * 2.0**-52


def gumbel(seed_words_R2: Tensor, positions_R: Tensor, ids_RC: Tensor) -> Tensor:
    """Return standard Gumbel noise, [R, C] float64.

    The id whose log-weight plus noise is largest is a draw in which each id has a probability in proportion to its
    weight.
    """
    return -torch.log(-torch.log(uniform(seed_words_R2, positions_R, ids_RC)))
