"""The native scanner of rows against torch's scanner, and the sampler with each of them."""

# N rows, V vocabulary

import numpy as np
import pytest
import torch
from textmill_shard.model.score_changes import FirstPass, ScoreChanges
from textmill_shard.sampling.row_scan import NativeRowScanner, TorchRowScanner
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.native_cases import native_kernels
from tests.fakes.sampling_hand import Seat, sample, seated_sampler, step_rows

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


class PassingScanner(TorchRowScanner):
    """Makes the first pass as the kernels of a GPU do, in plain torch, and counts the passes."""

    def __init__(self) -> None:
        self.changer = self
        self.num_passes = 0

    def first_pass(self, logits_NV: torch.Tensor, changes: ScoreChanges, num_candidates: int = 0) -> FirstPass:
        self.num_passes += 1
        return super().first_pass(logits_NV, changes, num_candidates)


MASK_V = np.arange(2000) % 3 == 1
IN_ONE_PASS = (
    Seat(SamplingParams()),
    Seat(SamplingParams(repetition_penalty=1.7, wants_logprobs=True), [1, 2, 9, 9], [4, 5]),
    Seat(SamplingParams(repetition_penalty=0.6, frequency_penalty=0.7, presence_penalty=-0.4), [1, 2], [4, 4, 9]),
    # An id with two amounts gains both, and the id 0 is no filling.
    Seat(SamplingParams(logit_bias=((11, 20.0), (11, -3.0), (0, 1.0)), repetition_penalty=2.0, top_n_tokens=2), [0]),
    Seat(SamplingParams(has_grammar=True, logit_bias=((4, 9.0),)), [3], allowed_V=MASK_V),
    Seat(SamplingParams(do_sample=True, temperature=0.7, top_p=0.9, seed=5, frequency_penalty=0.3), [1], [7, 7]),
    Seat(SamplingParams(do_sample=True, temperature=1.9, seed=6, wants_logprobs=True, min_p=0.01)),
    Seat(SamplingParams(do_sample=True, temperature=1.3, seed=7, has_grammar=True), allowed_V=MASK_V),
    Seat(SamplingParams(do_sample=True, top_k=5, seed=8, logit_bias=((1, 2.0),))),
)
BY_STAGES = (
    Seat(SamplingParams(do_sample=True, typical_p=0.4, seed=9, presence_penalty=1.0), [5], [6, 7]),
    Seat(SamplingParams(do_sample=True, watermark=True, seed=10)),
    Seat(SamplingParams(min_new_tokens=4, end_ids=(3,))),
)


UNCHANGED = (Seat(SamplingParams(top_n_tokens=30)), Seat(SamplingParams(do_sample=True, top_k=3, seed=4)))


@pytest.mark.parametrize(
    "chosen",
    [IN_ONE_PASS, IN_ONE_PASS[1:4], IN_ONE_PASS[5:7], IN_ONE_PASS[6:7], UNCHANGED, UNCHANGED[:1], BY_STAGES],
)
@pytest.mark.parametrize("num_candidates", [16, 1024])
def test_one_pass_samples_what_the_stages_sample(chosen: tuple[Seat, ...], num_candidates: int) -> None:
    """The rows go on for some steps, in which the lists of the requests grow."""
    scanner = PassingScanner()
    samplers = [seated_sampler(chosen, num_candidates=num_candidates, scanner=one) for one in (scanner, None)]
    for step in range(5):
        logits_NV = torch.randn(len(chosen), 2000, generator=torch.Generator().manual_seed(step)) * 3
        rows = [step_rows(sampler, range(len(chosen))) for sampler in samplers]
        passed, staged = (sampler.sample(logits_NV, row) for sampler, row in zip(samplers, rows, strict=True))
        assert passed.tokens_N.tolist() == staged.tokens_N.tolist()
        assert passed.not_finite_N.tolist() == staged.not_finite_N.tolist()
        if passed.logprobs_N is not None and staged.logprobs_N is not None:
            assert torch.allclose(passed.logprobs_N, staged.logprobs_N, rtol=0, atol=1e-5, equal_nan=True)
        assert [top is None or top.ids.tolist() for top in passed.top] == [
            top is None or top.ids.tolist() for top in staged.top
        ]
        for sampler, row in zip(samplers, rows, strict=True):
            sampler.append(row, passed.tokens_N)
    assert scanner.num_passes == (0 if chosen is BY_STAGES else 5)


def test_a_slot_that_another_request_left_changes_nothing() -> None:
    """The state of a stage stays in a slot whose next request does not ask for the stage."""
    logits_NV = torch.randn(2, 300, generator=torch.Generator().manual_seed(3)) * 3
    best = logits_NV.argmax(-1).tolist()
    seats = [Seat(SamplingParams(repetition_penalty=3.0, frequency_penalty=9.0), best, best)] * 2
    sampler = seated_sampler(seats, scanner=PassingScanner())
    assert sampler.sample(logits_NV, step_rows(sampler, [0, 1])).tokens_N.tolist() != best
    sampler.admit(0, SamplingParams(), Seat(SamplingParams()).text)
    tokens = sampler.sample(logits_NV, step_rows(sampler, [0, 1])).tokens_N.tolist()
    assert tokens[0] == best[0]
    assert tokens[1] != best[1]
