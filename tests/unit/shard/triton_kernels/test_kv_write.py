"""The kernel that writes keys and values agrees with plain torch in Triton's interpreter, and turns as transformers."""

import pytest
import torch
import triton
import triton.language as tl
from textmill_shard.attention.base import RotaryTables
from textmill_shard.attention.kv_write import turn, write_plainly
from textmill_shard.model.kv_scales import KvScales, largest_number
from textmill_shard.triton_kernels.cases import WriteCase
from textmill_shard.triton_kernels.variants import VARIANTS, Variant
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as turn_interleaved
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as turn_halves

from tests.fakes.kernel_cases import STORED_TYPES, interpreted_kernels

NUM_TOKENS, NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS = 11, 5, 4, 2
ROWS = [variant for variant in VARIANTS if isinstance(variant.case, WriteCase)]


def make_tables(width: int, *, is_interleaved: bool) -> RotaryTables:
    """Return tables of which both members of a pair have the same angle, as transformers makes them."""
    angles = torch.rand(NUM_TOKENS, width // 2, generator=torch.Generator().manual_seed(3)) * 7
    angles_TP = angles.repeat_interleave(2, dim=-1) if is_interleaved else torch.cat([angles, angles], dim=-1)
    return RotaryTables(angles_TP.cos(), angles_TP.sin(), is_interleaved=is_interleaved)


@pytest.mark.parametrize("variant", ROWS, ids=lambda variant: variant.name)
def test_each_variant_of_the_table_agrees_with_plain_torch(variant: Variant) -> None:
    case = variant.case
    assert isinstance(case, WriteCase)
    generator = torch.Generator().manual_seed(1)
    num_heads = case.group * NUM_KV_HEADS
    # One projection gives queries, keys and values side by side, and transformers hands out views with the heads first.
    widths = [num_heads * case.key_dim, NUM_KV_HEADS * case.key_dim, NUM_KV_HEADS * case.value_dim]
    flat = torch.randn(NUM_TOKENS, sum(widths), generator=generator).split(widths, dim=-1)
    query_THD, key_TKD, value_TKE = (
        part.view(NUM_TOKENS, count, -1)
        for part, count in zip(flat, (num_heads, NUM_KV_HEADS, NUM_KV_HEADS), strict=True)
    )
    tables = None
    if case.turn != "none":
        tables = make_tables(case.rotary_dim, is_interleaved=case.turn == "interleaved")
    places_T = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=generator)[:NUM_TOKENS]
    stored, scales = torch.float32, None
    if case.stored is not None:
        # Some numbers of one head are larger than the largest number of 8 bits.
        stored = STORED_TYPES[case.stored]
        small = 2.0 / largest_number(stored)
        scales = KvScales(keys_K=torch.tensor([small, 0.5]), values_K=torch.tensor([0.25, small]))
    pools = [
        torch.full((NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS, dim), 7.0).to(stored)
        for dim in (case.key_dim, case.value_dim)
    ]
    expected_pools = [pool.float() for pool in pools]
    expected = write_plainly(query_THD, key_TKD, value_TKE, *expected_pools, places_T, tables)
    found = interpreted_kernels().write_kv(
        query_THD, key_TKD, value_TKE, *pools, places_T=places_T, tables=tables, scales=scales
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for pool, expected_pool, scales_K in zip(
        pools, expected_pools, (None, None) if scales is None else (scales.keys_K, scales.values_K), strict=True
    ):
        if scales_K is None:
            torch.testing.assert_close(pool, expected_pool, rtol=1e-6, atol=1e-6)
        else:
            assert_stored(pool, expected_pool.flatten(0, 1)[places_T], scales_K, places_T)


@triton.jit
def cast(numbers, out, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + at, tl.load(numbers + at).to(out.dtype.element_ty))


def by_the_interpreter(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return numbers in 8 bits as the interpreter makes them, which does not round as a GPU does."""
    out = torch.empty(numbers.shape, dtype=dtype)
    cast[(numbers[..., 0].numel(),)](numbers.contiguous(), out, SIZE=numbers.shape[-1])
    return out


def assert_stored(pool: torch.Tensor, numbers: torch.Tensor, scales_K: torch.Tensor, places_T: torch.Tensor) -> None:
    largest = largest_number(pool.dtype)
    scaled = numbers / scales_K.unsqueeze(-1)
    assert bool((scaled.abs() > largest).any()), "a number is cut"
    width = 1 << (numbers.shape[-1] - 1).bit_length()
    wide = torch.nn.functional.pad(scaled.clamp(-largest, largest), (0, width - numbers.shape[-1]))
    expected = by_the_interpreter(wide, pool.dtype)[..., : numbers.shape[-1]]
    found = pool.flatten(0, 1)[places_T]
    # A turned number near the middle of two numbers of 8 bits may become either.
    assert int((found.view(torch.uint8) != expected.view(torch.uint8)).sum()) <= 2
    others = torch.ones(NUM_BLOCKS * BLOCK_SIZE, dtype=torch.bool)
    others[places_T] = False
    assert bool((pool.flatten(0, 1)[others].float() == 7.0).all())


@pytest.mark.parametrize(
    ("turn_by_transformers", "is_interleaved", "width"),
    [(turn_halves, False, 8), (turn_halves, False, 12), (turn_interleaved, True, 8)],  # of 12 dims 8 turn
)
def test_the_turn_is_that_of_transformers(turn_by_transformers: object, is_interleaved: bool, width: int) -> None:
    assert callable(turn_by_transformers)
    x_THD = torch.randn(NUM_TOKENS, 3, width, generator=torch.Generator().manual_seed(2))
    tables = make_tables(8, is_interleaved=is_interleaved)
    x_1HTD = x_THD.transpose(0, 1).unsqueeze(0)
    expected, _ = turn_by_transformers(x_1HTD, x_1HTD, tables.cosines_TP.unsqueeze(0), tables.sines_TP.unsqueeze(0))
    torch.testing.assert_close(turn(x_THD, tables), expected[0].transpose(0, 1), rtol=1e-6, atol=1e-6)


def test_numbers_of_16_bits_are_rounded_once() -> None:
    x_THD = torch.randn(NUM_TOKENS, 3, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    tables = make_tables(8, is_interleaved=False)
    exact = turn(x_THD.double().float(), tables)
    assert torch.equal(turn(x_THD, tables), exact.bfloat16())


def test_places_beyond_two_to_the_31_elements_are_written() -> None:
    """Pools of a large GPU have more elements than 32 bits count. What no test touches takes no memory."""
    dim = 16
    num_blocks = 2**31 // (BLOCK_SIZE * dim) + 1
    pools = [torch.empty(num_blocks, BLOCK_SIZE, 1, dim, dtype=torch.bfloat16) for _ in range(2)]
    tail = [pool[-2:].zero_() for pool in pools]
    key_TKD, value_TKE = (torch.randn(1, 1, dim).bfloat16().float() for _ in range(2))
    places_T = torch.tensor([num_blocks * BLOCK_SIZE - 1])
    interpreted_kernels().write_kv(key_TKD, key_TKD, value_TKE, *pools, places_T=places_T, tables=None)
    for pool, row in zip(tail, (key_TKD, value_TKE), strict=True):
        assert torch.equal(pool[-1, -1].float(), row[0])
        assert int((pool != 0).sum()) == dim
