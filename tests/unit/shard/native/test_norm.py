"""The native RMSNorm and the narrow linear layer agree with formulas in float64."""

import pytest
import torch

from tests.fakes.native_cases import native_kernels

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8}  # bfloat16: half a unit in the last place, rounded once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 576), (3, 17), (5, 8), (200, 640)])
def test_rms_norm_equals_its_formula(dtype: torch.dtype, num_rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(num_rows, width, generator=generator).to(dtype)
    weight = torch.randn(width, generator=generator)
    found = native_kernels().rms_norm(x, weight, 1e-5)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert found.dtype == dtype
    assert ((found.double() - expected).abs() <= ROUNDING[dtype] * expected.abs() + 1e-7).all()


@pytest.mark.parametrize("num_outputs", [7, 32, 50, 96])
@pytest.mark.parametrize("num_rows", [1, 3, 13])
def test_narrow_linear_is_the_wide_one_rounded(num_rows: int, num_outputs: int) -> None:
    torch.manual_seed(4)
    x, weight = torch.randn(num_rows, 64).bfloat16(), torch.randn(num_outputs, 64).bfloat16()
    kernels = native_kernels()
    packed = kernels.pack(weight)
    assert torch.equal(kernels.linear(x, packed, is_narrow=True), kernels.linear(x, packed).bfloat16())
