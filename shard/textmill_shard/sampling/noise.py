"""Noise that depends on the request alone: a counter-based generator, so neighbours in a batch cannot change it.

The generator is Philox4x32-10 of J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011), which passes BigCrush. Key: the request's 64-bit seed. Counter: token id, output position, 0, 0.
R rows, C ids per row. 32-bit words are held in int64, since torch has few operations on unsigned types; a product wraps
modulo 2**64, which keeps all its bits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

TAIL_ID = 0xFFFFFFFF  # the word that stands for "all other tokens"; never a token id

_MASK = 0xFFFFFFFF
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_KEY_STEP_0 = 0x9E3779B9
_KEY_STEP_1 = 0xBB67AE85
_ROUNDS = 10


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words for four counter words and two key words: int64 tensors that broadcast, values 0 .. 2**32-1."""
    word_0, word_1, word_2, word_3 = counter
    rounds = torch.arange(_ROUNDS, device=word_0.device)
    keys_0 = ((key[0].unsqueeze(-1) + rounds * _KEY_STEP_0) & _MASK).unbind(-1)
    keys_1 = ((key[1].unsqueeze(-1) + rounds * _KEY_STEP_1) & _MASK).unbind(-1)
    for key_0, key_1 in zip(keys_0, keys_1, strict=True):
        product_0 = word_0 * _MULTIPLIER_0
        product_1 = word_2 * _MULTIPLIER_1
        # The shift drags the sign along; the mask takes it off.
        word_0 = ((product_1 >> 32) ^ word_1 ^ key_0) & _MASK
        word_2 = ((product_0 >> 32) ^ word_3 ^ key_1) & _MASK
        word_1 = product_1 & _MASK
        word_3 = product_0 & _MASK
    return word_0, word_1, word_2, word_3


def seed_words(seeds: Sequence[int], device: torch.device) -> Tensor:
    """[R, 2] int64: the low and high 32-bit word of each unsigned 64-bit seed."""
    return torch.tensor([[seed & _MASK, seed >> 32] for seed in seeds], dtype=torch.int64, device=device)


def uniform(seed_words_R2: Tensor, positions_R: Tensor, ids_RC: Tensor) -> Tensor:
    """[R, C] float64, evenly spread over the open interval (0, 1) in steps of 2**-52.

    `positions_R` int64: output tokens before this one. `ids_RC` int64: token ids, or TAIL_ID.
    """
    zero = torch.zeros((), dtype=torch.int64, device=ids_RC.device)
    keys = (seed_words_R2[:, :1], seed_words_R2[:, 1:])
    word_0, word_1, _, _ = philox((ids_RC, positions_R.unsqueeze(-1), zero, zero), keys)
    return (((word_0 << 20) | (word_1 >> 12)).double() + 0.5) * 2.0**-52


def gumbel(seed_words_R2: Tensor, positions_R: Tensor, ids_RC: Tensor) -> Tensor:
    """[R, C] float64 standard Gumbel noise: the id with the largest log-weight + noise is a draw by weight."""
    return -torch.log(-torch.log(uniform(seed_words_R2, positions_R, ids_RC)))
