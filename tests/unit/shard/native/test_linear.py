"""The native linear layers agree with torch's, and a row does not depend on the other rows of its batch."""

import pytest
import torch
from textmill_shard.native.kernels import pad_bias

from tests.fakes.native_cases import native_kernels

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-5}  # both add in float32; inputs are equal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 7, 8, 12, 13, 32, 121, 250])
@pytest.mark.parametrize(("num_outputs", "inner"), [(96, 64), (320, 576), (50, 26), (33, 2)])
def test_linear_equals_torch(dtype: torch.dtype, num_rows: int, num_outputs: int, inner: int) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(num_rows, inner).to(dtype), torch.randn(num_outputs, inner).to(dtype)
    bias = torch.randn(num_outputs)
    kernels = native_kernels()
    out = kernels.linear(x, kernels.pack(weight), pad_bias(bias))
    expected = x.double() @ weight.double().T + bias.double()
    assert (out - expected).abs().max() / expected.abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_gives_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(150, 192).to(dtype), torch.randn(160, 192).to(dtype)
    kernels = native_kernels()
    packed = kernels.pack(weight)
    whole = kernels.linear(x, packed)
    for count in (1, 2, 3, 8, 13):
        assert torch.equal(kernels.linear(x[140 : 140 + count], packed), whole[140 : 140 + count]), count
