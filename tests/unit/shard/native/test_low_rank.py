"""The native products of adapters equal a formula that is written out here, also where widths fill no vector."""

# T rows, I inputs, O outputs, r rank

from collections.abc import Sequence

import pytest
import torch
from textmill_shard.native.low_rank import LowRankPart, LowRankProduct, PackedLowRank, pack_together

from tests.fakes.native_cases import native_kernels

NUM_ROWS = 29  # several runs of each adapter, and of the base model
DTYPES = [torch.float32, torch.bfloat16]


def whole_numbers(*shape: int) -> torch.Tensor:
    """Small integers: their sums are exact in float32 in any order, so that results can be compared bit for bit."""
    return torch.randint(-3, 4, shape).float()


def make_part(num_outputs: int, inner: int, rank: int, dtype: torch.dtype, scale: float = 0.5) -> LowRankPart:
    a_rI, b_Or = whole_numbers(rank, inner).to(dtype), whole_numbers(num_outputs, rank).to(dtype)
    return LowRankPart(num_outputs, a_rI, b_Or, scale)


def added(x_TI: torch.Tensor, parts: Sequence[LowRankPart]) -> torch.Tensor:
    """Return `scale (x A^T) B^T` of each part side by side, `[T, O]`; z is rounded to the dtype of x."""
    products = []
    for part in parts:
        if part.a_rI is None or part.b_Or is None:
            products.append(torch.zeros(x_TI.shape[0], part.num_outputs, dtype=torch.float64))
            continue
        z_Tr = torch.einsum("ti,ri->tr", x_TI.double(), part.a_rI.double()) * part.scale
        products.append(torch.einsum("tr,or->to", z_Tr.to(x_TI.dtype).double(), part.b_Or.double()))
    return torch.cat(products, dim=1)


def check(
    adapters: Sequence[Sequence[LowRankPart]], inner: int, dtype: torch.dtype, *, is_narrow: bool = False
) -> None:
    """Give the rows adapters in turn, with rows of the base model between them, and compare each row."""
    x_TI = whole_numbers(NUM_ROWS, inner).to(dtype)
    num_outputs = sum(part.num_outputs for part in adapters[0])
    out_TO = whole_numbers(NUM_ROWS, num_outputs).to(dtype if is_narrow else torch.float32)
    adapter_of_row_T = torch.arange(NUM_ROWS, dtype=torch.int32) % (len(adapters) + 1) - 1
    wanted_TO = out_TO.double()
    for number, parts in enumerate(adapters):
        rows = adapter_of_row_T == number
        wanted_TO[rows] += added(x_TI[rows], parts)
    packed = [PackedLowRank(parts) for parts in adapters]
    native_kernels().add_low_rank(out_TO, x_TI, [one.product for one in packed], adapter_of_row_T)
    assert torch.equal(out_TO, wanted_TO.to(out_TO.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 7, 8, 9, 64])
@pytest.mark.parametrize(("num_outputs", "inner"), [(96, 64), (16, 32), (50, 26), (33, 2), (7, 98), (320, 576)])
def test_one_layer_equals_the_formula(dtype: torch.dtype, rank: int, num_outputs: int, inner: int) -> None:
    torch.manual_seed(1)
    check([[make_part(num_outputs, inner, rank, dtype)], [make_part(num_outputs, inner, 3, dtype, 2.0)]], inner, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(32, 16, 16), (48, 16, 16), (18, 6, 6), (20, 12, 10), (40, 8, 24)])
def test_query_key_and_value_of_any_widths_equal_the_formula(dtype: torch.dtype, widths: Sequence[int]) -> None:
    torch.manual_seed(2)
    inner = 44
    every = [make_part(width, inner, rank, dtype) for width, rank in zip(widths, (1, 9, 16), strict=True)]
    some = [make_part(widths[0], inner, 7, dtype), LowRankPart(widths[1]), make_part(widths[2], inner, 8, dtype, 4.0)]
    only_the_last = [LowRankPart(widths[0]), LowRankPart(widths[1]), make_part(widths[2], inner, 64, dtype)]
    check([every, some, only_the_last], inner, dtype)


@pytest.mark.parametrize("width", [32, 50])
def test_rows_that_are_narrow_already_are_rounded_once_more(width: int) -> None:
    torch.manual_seed(3)
    parts = [make_part(width, 64, 9, torch.bfloat16)]
    check([parts], 64, torch.bfloat16, is_narrow=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_rank_can_have_a_scale(dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    part = make_part(40, 32, 3, dtype)
    scales = torch.tensor([1.0, 0.25, 4.0])
    check([[LowRankPart(40, part.a_rI, part.b_Or, scales)]], 32, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_gives_the_same_bits_beside_any_rows(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    x_TI = torch.randn(40, 70).to(dtype)
    packed = [PackedLowRank([LowRankPart(50, torch.randn(9, 70).to(dtype), torch.randn(50, 9).to(dtype))])] * 3
    products = [one.product for one in packed]
    kernels = native_kernels()
    whole_TO = torch.zeros(40, 50)
    kernels.add_low_rank(whole_TO, x_TI, products, torch.arange(40, dtype=torch.int32) % 3)
    for row in (0, 17, 39):
        alone_TO = torch.zeros(1, 50)
        kernels.add_low_rank(alone_TO, x_TI[row : row + 1], products[:1], torch.zeros(1, dtype=torch.int32))
        assert torch.equal(alone_TO[0], whole_TO[row])


def test_rows_of_the_base_model_keep_their_bits_and_what_lies_between_rows() -> None:
    torch.manual_seed(6)
    whole = torch.randn(6, 64)
    out_TO = whole[:, :50]
    before = whole.clone()
    packed = PackedLowRank([make_part(50, 26, 8, torch.float32)])
    adapter_of_row_T = torch.tensor([-1, 0, -1, -1, 0, -1], dtype=torch.int32)
    native_kernels().add_low_rank(out_TO, torch.randn(6, 26), [packed.product], adapter_of_row_T)
    assert torch.equal(whole[adapter_of_row_T < 0], before[adapter_of_row_T < 0])
    assert torch.equal(whole[:, 50:], before[:, 50:])
    assert not torch.equal(whole[adapter_of_row_T == 0, :50], before[adapter_of_row_T == 0, :50])


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_in_one_piece_of_memory_equal_the_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    parts = [[make_part(40, 26, rank, dtype)] for rank in (3, 8)]
    packed = [PackedLowRank(one) for one in parts]
    kernels = native_kernels()
    pack_together(packed, kernels.allocate)
    x_TI, rows_T = whole_numbers(5, 26).to(dtype), torch.zeros(5, dtype=torch.int32)
    for one, moved in zip(parts, packed, strict=True):
        assert moved.product.a % 64 == 0
        out_TO = torch.zeros(5, 40)
        kernels.add_low_rank(out_TO, x_TI, [moved.product], rows_T)
        assert torch.equal(out_TO, added(x_TI, one).float())


def test_a_layer_that_no_adapter_of_the_step_changes_is_left_alone() -> None:
    out_TO = torch.ones(3, 20)
    rows_T = torch.zeros(3, dtype=torch.int32)
    native_kernels().add_low_rank(out_TO, torch.ones(3, 8), [LowRankProduct()], rows_T)
    assert torch.equal(out_TO, torch.ones(3, 20))
