"""Rows that take the best id skip the sampler, and have the tokens and log-probabilities that the sampler gives."""

# N rows, V vocabulary

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from textmill_shard.engine.row_sampling import DrawnRows, RowSampler
from textmill_shard.engine.upload import Upload, to_host
from textmill_shard.grammar.slots import GrammarSlots
from textmill_shard.model.forward_batch import ForwardOutput, HostScan
from textmill_shard.sampling.sampler import Draft, SampledRows, Sampler
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.sampling_params import SamplingParams
from textmill_shard.slots.slot_table import SlotTable

from tests.fakes.sampling_hand import CPU, Seat, sample, seated_sampler
from tests.fakes.step_harness import BLOCK_SIZE, NUM_BLOCKS, NUM_SLOTS, admit

VOCAB_SIZE = 50
CHANGES = (
    SamplingParams(do_sample=True, temperature=1.5, seed=3),
    SamplingParams(repetition_penalty=9.0),
    SamplingParams(presence_penalty=9.0),
    SamplingParams(frequency_penalty=9.0),
    SamplingParams(logit_bias=((3, 60.0),)),
    SamplingParams(min_new_tokens=3, end_ids=(1,)),
    SamplingParams(allowed_ids=(3, 4)),
    SamplingParams(bad_sequences=((1,),)),
    SamplingParams(watermark=True),
    SamplingParams(top_n_tokens=2, wants_logprobs=True),
)


class _NoSampler(Sampler):
    """A sampler that fails when a row is sampled."""

    def draft(self, *arguments: object) -> None:  # type: ignore[override]
        raise AssertionError("these rows need no sampler")


class _FewCandidates(Sampler):
    """A sampler whose rows have to look beyond their candidates often. Counts the steps in which a row has to."""

    num_settled = 0

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        super().__init__(num_slots=num_slots, device=device, num_candidates=2)

    def settle(self, draft: Draft) -> SampledRows:
        _FewCandidates.num_settled += 1
        return super().settle(draft)


def draw(
    params: Sequence[SamplingParams],
    logits_NV: torch.Tensor,
    kind: type[Sampler] = Sampler,
    *,
    has_scan: bool,
) -> DrawnRows:
    table = SlotTable(num_slots=NUM_SLOTS, block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS)
    rules = FinishRules([0])
    sampler = kind(num_slots=NUM_SLOTS, device=CPU)
    rows = RowSampler(sampler=sampler, finish_rules=rules, grammars=GrammarSlots(None, rules))
    for slot, one in enumerate(params):
        seated = replace(admit(slot, [1, 2], max_new=4), sampling=one)
        table.admit(seated)
        rows.admit(seated)
    upload = Upload(torch.device("cpu"))
    rows.prepare(np.arange(len(params)), upload)
    upload.send()
    output = ForwardOutput(logits_NV=logits_NV, hidden_TD=None, scan=scan_of(logits_NV) if has_scan else None)
    launched = rows.launch(table, np.arange(len(params)), output)
    return rows.finish(launched, to_host(*launched.tensors) if launched.tensors else [])


def scan_of(logits_NV: torch.Tensor) -> HostScan:
    return HostScan(
        best_N=logits_NV.argmax(-1).numpy(),
        best_scores_N=logits_NV.amax(-1).numpy(),
        not_finite_N=(~logits_NV.isfinite().all(-1)).numpy(),
        log_mass_N=logits_NV.logsumexp(-1).numpy(),
    )


def random_logits(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(num_rows)) * 3


@pytest.mark.parametrize("wants_logprobs", [(False, False), (True, True), (True, False)])
def test_greedy_rows_bring_what_the_sampler_says(wants_logprobs: tuple[bool, bool]) -> None:
    params = [SamplingParams(wants_logprobs=wants) for wants in wants_logprobs]
    logits_NV = random_logits(2)
    found = draw(params, logits_NV, _NoSampler, has_scan=True)
    expected = draw(params, logits_NV, has_scan=False)
    assert found.tokens_N.tolist() == expected.tokens_N.tolist() == logits_NV.argmax(-1).tolist()
    assert (found.logprobs_N is None) == (expected.logprobs_N is None) == (not any(wants_logprobs))
    if found.logprobs_N is not None and expected.logprobs_N is not None:
        assert found.logprobs_N.dtype == np.float32
        assert np.allclose(found.logprobs_N, expected.logprobs_N, rtol=0, atol=1e-6, equal_nan=True)
        assert np.isnan(found.logprobs_N).tolist() == [not wants for wants in wants_logprobs]
    assert not found.faults
    assert found.tokens_N.flags.owndata  # a result that waits does not keep the logits, which lie beside the scan


def test_rows_that_look_beyond_their_candidates_bring_the_tokens_of_the_sampler() -> None:
    """A greedy row beside them keeps its token, and a row that asks gets the log-probability of the settled token."""
    logits_NV = random_logits(4) / 10
    before = _FewCandidates.num_settled
    for seed in range(20):
        params = [
            SamplingParams(do_sample=True, seed=seed, wants_logprobs=True),
            SamplingParams(),
            SamplingParams(do_sample=True, seed=seed, top_p=0.9),
            SamplingParams(do_sample=True, seed=seed, typical_p=0.5),
        ]
        found = draw(params, logits_NV, _FewCandidates, has_scan=False)
        expected = sample(logits_NV, [Seat(one, prompt=[1, 2]) for one in params], num_candidates=VOCAB_SIZE)
        assert found.tokens_N[1:].tolist() == expected.tokens_N[1:].tolist()
        assert found.logprobs_N is not None
        logprob = logits_NV[0].log_softmax(-1)[found.tokens_N[0]]
        assert found.logprobs_N[0] == pytest.approx(float(logprob), abs=1e-5)
    assert _FewCandidates.num_settled - before > 10


@pytest.mark.parametrize("stranger", [torch.nan, torch.inf])
def test_a_greedy_row_that_is_not_finite_is_a_fault_of_that_row(stranger: float) -> None:
    logits_NV = random_logits(3)
    logits_NV[1, 7] = stranger
    params = [SamplingParams()] * 3
    found = draw(params, logits_NV, _NoSampler, has_scan=True)
    expected = draw(params, logits_NV, has_scan=False)
    assert found.tokens_N.tolist() == expected.tokens_N.tolist()
    assert found.faults == expected.faults
    assert list(found.faults) == [1]


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_with_a_wish_of_its_own_is_the_samplers(change: SamplingParams) -> None:
    sampler = seated_sampler([Seat(change)])
    assert not sampler.takes_best(sampler.select(np.array([0])))
    logits_NV = random_logits(2)
    logits_NV[1, 2] = 20.0  # the prompt's last token would be the best
    params = [SamplingParams(), change]
    found = draw(params, logits_NV, has_scan=True)
    expected = draw(params, logits_NV, has_scan=False)
    assert found.tokens_N.tolist() == expected.tokens_N.tolist()
    assert [top if top is None else top.ids.tolist() for top in found.top] == [
        top if top is None else top.ids.tolist() for top in expected.top
    ]


@pytest.mark.parametrize("has_scan", [True, False])
def test_row_in_which_no_token_is_left_is_a_fault_of_that_row_alone(has_scan: bool) -> None:
    params = [
        SamplingParams(),
        SamplingParams(allowed_ids=(3,), bad_sequences=((3,),)),
        SamplingParams(allowed_ids=(3,)),
    ]
    logits_NV = random_logits(3)
    found = draw(params, logits_NV, has_scan=has_scan)
    assert list(found.faults) == [1]
    assert found.faults[1].message.startswith("no token is left: ")
    assert [int(found.tokens_N[row]) for row in (0, 2)] == [int(logits_NV[0].argmax()), 3]
    logits_NV[1, 7] = torch.nan
    assert "not finite" in draw(params, logits_NV, has_scan=has_scan).faults[1].message
