"""Numbers of 8 bits are those of their definition, and scales are powers of two that leave room."""

import pytest
import torch
from textmill_shard.model.kv_scales import KV_TYPES, ROOM, largest_number, measure_scales, restore, store

# Bits of the mantissa and bias of the exponent: "FP8 formats for deep learning" (Micikevicius et al., 2022), table 1.
MANTISSA_BITS = {torch.float8_e4m3fn: 3, torch.float8_e5m2: 2}
BIAS = {torch.float8_e4m3fn: 7, torch.float8_e5m2: 15}
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
TYPES = pytest.mark.parametrize("dtype", KV_TYPES.values(), ids=KV_TYPES.keys())


def all_numbers(dtype: torch.dtype) -> torch.Tensor:
    """Return each finite number of a type that is not negative, by the formula of its bits."""
    bits = MANTISSA_BITS[dtype]
    numbers = []
    for code in range(128):
        exponent, mantissa = code >> bits, code & (2**bits - 1)
        share = mantissa / 2**bits
        numbers.append(2.0 ** (exponent - BIAS[dtype]) * (1 + share) if exponent else 2.0 ** (1 - BIAS[dtype]) * share)
    return torch.tensor([number for number in numbers if number <= LARGEST[dtype]])


@TYPES
def test_a_number_becomes_the_nearest_number_of_8_bits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x_TKD = torch.randn(50, 2, 8, generator=generator) * torch.exp2(torch.randint(-20, 7, (50, 2, 8)))
    scales_K = torch.tensor([0.25, 2.0])
    found = restore(store(x_TKD, scales_K, dtype), scales_K, torch.float32)
    known = all_numbers(dtype)
    for head, scale in enumerate(scales_K.tolist()):
        wanted = (x_TKD[:, head].abs() / scale).clamp(max=LARGEST[dtype])
        least = (wanted.unsqueeze(-1) - known).abs().amin(dim=-1)
        error = (found[:, head].abs() / scale - wanted).abs()
        assert torch.equal(error, least)
    assert torch.equal(found.sign()[found != 0], x_TKD.sign()[found != 0])


@TYPES
def test_large_numbers_are_cut_and_nan_stays(dtype: torch.dtype) -> None:
    assert largest_number(dtype) == LARGEST[dtype]
    x_1KD = torch.tensor([[[1e9, -1e9, float("inf"), float("nan")]]])
    found = restore(store(x_1KD, torch.tensor([0.5]), dtype), torch.tensor([0.5]), torch.float32)
    assert found[0, 0, :3].tolist() == [LARGEST[dtype] / 2, -LARGEST[dtype] / 2, LARGEST[dtype] / 2]
    assert found[0, 0, 3].isnan()


@TYPES
def test_scales_are_the_least_powers_of_two_that_leave_room(dtype: torch.dtype) -> None:
    keys_TKD = torch.tensor([[[3.0, -70.0]], [[0.0, 1.0]]]).expand(2, 3, 2).clone()
    keys_TKD[:, 1] = 0.0
    keys_TKD[:, 2] *= 1e-6
    [scales] = measure_scales([keys_TKD], [keys_TKD.bfloat16()], dtype)
    assert scales.keys_K[1] == 1.0  # a head without a size keeps its numbers
    for head, peak in ((0, 70.0), (2, 70.0 * 1e-6)):
        scale = float(scales.keys_K[head])
        assert torch.tensor(scale).log2() % 1 == 0
        assert peak * ROOM <= scale * LARGEST[dtype]
        assert peak * ROOM > scale / 2 * LARGEST[dtype]
    assert scales.values_K[1] == 1.0


@TYPES
def test_a_scale_rounds_nothing(dtype: torch.dtype) -> None:
    """So a pool keeps equal bits, but for the smallest numbers, when a restart measures another scale."""
    x_TKD = torch.randn(40, 1, 16, generator=torch.Generator().manual_seed(2)) + 3.0
    scales = [torch.tensor([scale]) for scale in (0.5, 1.0, 0.125)]
    first, *others = (restore(store(x_TKD, scale, dtype), scale, torch.float32) for scale in scales)
    assert all(torch.equal(first, other) for other in others)
