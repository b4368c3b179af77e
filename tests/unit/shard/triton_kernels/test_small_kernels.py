"""Norms, gates and scans agree with plain torch in Triton's interpreter, for each row of the table of variants.

The numbers are fp32, because the interpreter is exact for no others, and the widths are those of the rows.
"""

import pytest
import torch
from textmill_shard.sampling.row_scan import TorchRowScanner
from textmill_shard.triton_kernels.plain_layers import add_rms_norm_plainly, gate_up_plainly, rms_norm_plainly
from textmill_shard.triton_kernels.variants import SCAN_IDS, VARIANTS, GateCase, NormCase, Variant
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.fakes.kernel_cases import interpreted_kernels

# A GPU computes with infinities without a word; numpy, by which the interpreter computes, warns.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
EPSILON = 1e-5
NORMS = [variant for variant in VARIANTS if isinstance(variant.case, NormCase)]
GATES = [variant for variant in VARIANTS if isinstance(variant.case, GateCase)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", NORMS, ids=lambda variant: variant.name)
def test_each_norm_of_the_table_agrees_with_plain_torch(variant: Variant) -> None:
    case = variant.case
    assert isinstance(case, NormCase)
    x, residual = random(1, 5, case.width), random(1, 5, case.width, seed=1)
    factor_I = random(case.width, seed=2)
    if not case.has_residual:
        found = interpreted_kernels().rms_norm(x, factor_I, EPSILON)
        torch.testing.assert_close(found, rms_norm_plainly(x, factor_I, EPSILON), rtol=2e-6, atol=2e-6)
        return
    total, normed = interpreted_kernels().add_rms_norm(x, residual, factor_I, EPSILON)
    expected_total, expected = add_rms_norm_plainly(x, residual, factor_I, EPSILON)
    assert torch.equal(total, expected_total)
    torch.testing.assert_close(normed, expected, rtol=2e-6, atol=2e-6)


def test_norms_of_heads_are_read_where_they_lie() -> None:
    """Queries are a part of a joined product: the rows of a head lie at two strides."""
    joined = random(1, 7, 6 * 16)
    query = joined[..., : 4 * 16].view(1, 7, 4, 16)
    assert not query.is_contiguous()
    factor_I = random(16, seed=2)
    expected = rms_norm_plainly(query, factor_I, EPSILON)
    torch.testing.assert_close(interpreted_kernels().rms_norm(query, factor_I, EPSILON), expected, rtol=2e-6, atol=2e-6)
    heads_first = query.permute(0, 2, 3, 1)  # the last dim is not dense, so the rows are copied
    factor_T = random(7, seed=3)
    found = interpreted_kernels().rms_norm(heads_first, factor_T, EPSILON)
    torch.testing.assert_close(found, rms_norm_plainly(heads_first, factor_T, EPSILON), rtol=2e-6, atol=2e-6)


def test_the_norm_is_that_of_transformers() -> None:
    norm = LlamaRMSNorm(48, eps=EPSILON)
    norm.weight.data = random(48, seed=2)
    x = random(3, 48) * torch.tensor([1e-3, 1.0, 50.0]).unsqueeze(1)
    torch.testing.assert_close(rms_norm_plainly(x, norm.weight.data, EPSILON), norm(x).detach())


@pytest.mark.parametrize("variant", GATES, ids=lambda variant: variant.name)
def test_each_gate_of_the_table_agrees_with_plain_torch(variant: Variant) -> None:
    case = variant.case
    assert isinstance(case, GateCase)
    gate_TI, up_TI = (random(3, 2 * case.width) * 3).split(case.width, dim=-1)
    gate_TI[0, :4] = torch.tensor([100.0, -100.0, 0.0, -1e-6])
    found = interpreted_kernels().gate_up(gate_TI, up_TI, case.activation)
    # Where 1 + erf or 1 + tanh is nearly 0, the sum keeps the absolute error of its parts.
    torch.testing.assert_close(found, gate_up_plainly(gate_TI, up_TI, case.activation), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "name"), [("silu", "silu"), ("gelu", "gelu"), ("gelu_tanh", "gelu_pytorch_tanh")]
)
def test_the_activations_are_those_of_transformers(activation: object, name: str) -> None:
    gate_TI, up_TI = random(3, 8) * 3, random(3, 8, seed=1)
    found = gate_up_plainly(gate_TI, up_TI, activation)  # type: ignore[arg-type]
    torch.testing.assert_close(found, ACT2FN[name](gate_TI) * up_TI)


@pytest.mark.parametrize("vocab_size", [7, SCAN_IDS, SCAN_IDS + 1, 3 * SCAN_IDS - 5])
def test_scans_agree_with_plain_torch(vocab_size: int) -> None:
    scores_NV = random(9, vocab_size) * 4
    scores_NV[0, 2] = scores_NV[0, vocab_size - 1] = 99.0  # the first of equal scores counts
    scores_NV[1, 1] = torch.nan
    scores_NV[2, vocab_size - 1] = torch.inf
    scores_NV[3, 0] = -torch.inf
    scores_NV[4] = -30_000.0
    scores_NV[5] = scores_NV[5].abs() + 30_000.0
    scores_NV[6, : vocab_size - 1] = -torch.inf
    wide = torch.cat([scores_NV, torch.full((9, 3), 1e6)], dim=1)
    found = interpreted_kernels().scan_rows(wide[:, :vocab_size])
    expected = TorchRowScanner().scan(scores_NV, wants_mass=True)
    assert found.not_finite_N.tolist() == expected.not_finite_N.tolist()
    assert found.not_finite_N.tolist() == [False, True, True, True, False, False, True, False, False]
    finite = ~expected.not_finite_N
    assert found.best_N[finite].tolist() == expected.best_N[finite].tolist()
    assert found.best_N[0] == 2
    assert found.log_mass_N is not None
    assert expected.log_mass_N is not None
    torch.testing.assert_close(found.log_mass_N[finite], expected.log_mass_N[finite], rtol=1e-6, atol=1e-5)


def test_a_gate_is_not_its_other_half() -> None:
    """The kernel and its reference would agree if both exchanged the halves."""
    gate_TI, up_TI = random(2, 8), random(2, 8, seed=1)
    found = interpreted_kernels().gate_up(gate_TI, up_TI, "silu")
    torch.testing.assert_close(found, functional.silu(gate_TI) * up_TI, rtol=1e-5, atol=1e-6)
