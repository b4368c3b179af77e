"""The native scanner of rows against torch's scanner, and the sampler with each of them."""

# N rows, V vocabulary

import pytest
import torch
from textmill_shard.sampling.row_scan import NativeRowScanner, TorchRowScanner
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.native_cases import native_kernels
from tests.fakes.sampling_hand import Seat, sample

MASS_TOLERANCE = 4e-6  # float32 sums in another order, and an exponential within two units in the last place


@pytest.mark.parametrize("num_rows", [1, 3, 4, 9, 32])
@pytest.mark.parametrize("width", [1, 15, 16, 17, 300, 4099])
def test_native_scan_equals_torch(num_rows: int, width: int) -> None:
    scores_NV = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(width)) * 5
    found = NativeRowScanner(native_kernels()).scan(scores_NV, wants_mass=True)
    assert torch.equal(found.best_N, scores_NV.argmax(-1))
    assert not found.not_finite_N.any()
    assert found.log_mass_N is not None
    expected_N = scores_NV.double().logsumexp(-1)
    assert ((found.log_mass_N - expected_N).abs() <= MASS_TOLERANCE * expected_N.abs().clamp(min=1)).all()


def test_native_scan_takes_the_first_of_equal_scores() -> None:
    scores_NV = torch.zeros(3, 100)
    scores_NV[0, [37, 21, 53, 99]] = 4.0
    scores_NV[1, [97, 98]] = 4.0
    scores_NV[2] = -torch.inf
    found = NativeRowScanner(native_kernels()).scan(scores_NV, wants_mass=False)
    assert found.best_N.tolist() == [21, 97, 0]
    assert found.log_mass_N is None


@pytest.mark.parametrize("stranger", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 33, 63, 64])
def test_native_scan_sees_what_is_not_finite(stranger: float, place: int) -> None:
    scores_NV = torch.randn(5, 65, generator=torch.Generator().manual_seed(1))
    scores_NV[3, place] = stranger
    native = NativeRowScanner(native_kernels()).scan(scores_NV, wants_mass=True)
    assert torch.equal(native.not_finite_N, TorchRowScanner().scan(scores_NV, wants_mass=False).not_finite_N)
    assert native.not_finite_N.tolist() == [False, False, False, True, False]


def test_sampler_gives_the_same_with_either_scanner() -> None:
    logits_NV = torch.randn(6, 2000, generator=torch.Generator().manual_seed(2)) * 3
    logits_NV[4, 7] = torch.nan
    params = [
        SamplingParams(),
        SamplingParams(wants_logprobs=True, top_n_tokens=3),
        SamplingParams(repetition_penalty=1.7, wants_logprobs=True),
        SamplingParams(do_sample=True, temperature=1.3, seed=9, wants_logprobs=True),
        SamplingParams(wants_logprobs=True),
        SamplingParams(logit_bias=((11, 50.0),)),
    ]
    for chosen in (params, params[:1] + params[3:4], params[3:4]):
        rows = logits_NV[[params.index(one) for one in chosen]]
        seats = [Seat(one, [1, 2, int(rows[0].argmax())]) for one in chosen]
        plain = sample(rows, seats)
        native = sample(rows, seats, scanner=NativeRowScanner(native_kernels()))
        assert torch.equal(native.tokens_N, plain.tokens_N)
        assert torch.equal(native.not_finite_N, plain.not_finite_N)
        assert (native.logprobs_N is None) == (plain.logprobs_N is None)
        if native.logprobs_N is not None and plain.logprobs_N is not None:
            assert torch.allclose(native.logprobs_N, plain.logprobs_N, rtol=0, atol=1e-5, equal_nan=True)
        for one, other in zip(native.top, plain.top, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert one.ids.tolist() == other.ids.tolist()
