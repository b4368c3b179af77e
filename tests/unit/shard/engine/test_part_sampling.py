"""Ranks that share a vocabulary sample together, and every request gets what one rank gives it."""

from dataclasses import replace
from random import Random

import pytest
import torch
from textmill_shard.sampling.row_selection import StepRows
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.slots.plan import Beams, EarlyStopping
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.late_tokens import late_reader
from tests.fakes.random_requests import (
    BUDGET,
    GRAMMAR_FACTS,
    JUDGES,
    make_requests,
    may_end,
    run_requests,
    spoiled,
)
from tests.fakes.step_harness import FACTS, Shard, admit
from tests.fakes.thread_ranks import SharedShard, UnevenRunner


def few_candidates() -> Sampler:
    """Return a sampler whose rows have to look beyond their candidates often."""
    return Sampler(num_slots=FACTS.num_slots, device=torch.device("cpu"), num_candidates=2)


@pytest.mark.parametrize("has_overlap", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_all_kinds_of_rows_have_what_one_rank_gives(seed: int, has_overlap: bool) -> None:
    requests = make_requests(Random(seed), 24)
    runner = UnevenRunner()
    runner.spoil, runner.say = spoiled, may_end
    with Shard(facts=GRAMMAR_FACTS, matchers=JUDGES, sampler=few_candidates(), runner=runner) as alone:
        alone.send(budget=BUDGET)
        expected = run_requests(requests, alone, Random(seed), disturbs=False)
    shared = SharedShard(
        facts=GRAMMAR_FACTS,
        make_sampler=few_candidates,
        matchers=JUDGES,
        token_reader=late_reader(seed) if has_overlap else None,
    )
    with shared:
        for runner in (shared.runner, shared.other_runner):
            runner.spoil, runner.say = spoiled, may_end
        shared.send(budget=BUDGET)
        found = run_requests(requests, shared, Random(seed), disturbs=has_overlap)
    assert shared.error is None
    assert shared.other_error is None
    for request_id in range(len(requests)):
        assert found[request_id] == expected[request_id], (request_id, requests[request_id])
    looks = [entry for entry in shared.channel.entries if entry.look is not None and len(entry.look.rows)]
    assert len(looks) > 20
    assert sum(len(entry.masks) for entry in shared.channel.entries) > 5
    assert shared.runner.pool == shared.other_runner.pool


def test_a_model_with_state_rows_settles_before_its_tokens_are_fed() -> None:
    """A state that has taken in a token cannot be taken back, so the ranks look at rows before a token is shared."""
    sampling = SamplingParams(do_sample=True, temperature=5.0, seed=7, wants_logprobs=True, top_n_tokens=2)
    facts = replace(FACTS, layout="state", features=())
    found = []
    for is_shared in (False, True):
        shard = (
            SharedShard(facts=facts, make_sampler=few_candidates, token_reader=late_reader())
            if is_shared
            else Shard(facts=facts, sampler=few_candidates(), runner=UnevenRunner())
        )
        with shard:
            shard.send(admits=[admit(0, [5, 3, 8], max_new=20, sampling=sampling, ignore_eos=True)])
            found.append(shard.run_to_end(0))
        if isinstance(shard, SharedShard):
            assert shard.other_error is None
            assert sum(len(entry.look.rows) for entry in shard.channel.entries if entry.look is not None) > 5
            assert not any(len(entry.rewinds.slots) for entry in shard.channel.entries)
    assert found[0] == found[1]


class FailingSampler(Sampler):
    """Fails to draw the rows of slot 1."""

    def mix(self, tokens_S: torch.Tensor, others_N: torch.Tensor | None, rows: StepRows) -> torch.Tensor:
        draw_rows = rows[self.wishes.draw]
        if draw_rows is not None and 1 in draw_rows.on_host.slots_G:
            raise RuntimeError("no luck")
        return super().mix(tokens_S, others_N, rows)


@pytest.mark.parametrize(("has_overlap", "layout"), [(False, "flat"), (True, "flat"), (True, "state")])
def test_rule_19_the_fault_of_a_row_harms_no_other_row(has_overlap: bool, layout: str) -> None:
    sampling = SamplingParams(do_sample=True, top_k=3, seed=7)

    def make_sampler() -> Sampler:
        return FailingSampler(num_slots=FACTS.num_slots, device=torch.device("cpu"), num_candidates=40)

    facts = replace(FACTS, layout=layout, features=())
    shared = SharedShard(facts=facts, make_sampler=make_sampler, token_reader=late_reader() if has_overlap else None)
    with shared:
        shared.send(admits=[admit(slot, [5, slot], max_new=6, sampling=sampling, ignore_eos=True) for slot in range(3)])
        found = shared.run_to_end(0, 1, 2)
    with Shard(facts=FACTS, runner=UnevenRunner()) as alone:
        alone.send(admits=[admit(slot, [5, slot], max_new=6, sampling=sampling, ignore_eos=True) for slot in (0, 2)])
        assert found == alone.run_to_end(0, 2)
    assert [(error.slot, error.message) for result in shared.results for error in result.errors] == [
        (1, "sampling failed: RuntimeError: no luck")
    ]
    assert shared.other_error is None


def test_a_search_by_beams_has_whole_rows_and_gives_what_one_rank_gives() -> None:
    facts = replace(FACTS, features=(*FACTS.features, "beams"))
    search = replace(
        admit(0, [5, 3, 8, 1, 9], blocks=range(10), max_new=9),
        beams=Beams(3, 1, 1.0, EarlyStopping.NO),
    )
    plain = admit(1, [6, 2], blocks=range(20, 24), max_new=9, sampling=SamplingParams(do_sample=True, seed=3))
    found = []
    for is_shared in (False, True):
        shard = (
            SharedShard(facts=facts, make_sampler=few_candidates)
            if is_shared
            else Shard(facts=facts, sampler=few_candidates(), runner=UnevenRunner())
        )
        with shard:
            shard.send(admits=[search, plain])
            shard.run_to_end(0, 1)
            ended = [one for result in shard.results for one in result.found]
            found.append([([ids.tolist() for ids in one.sequences], one.scores.round(4).tolist()) for one in ended])
            if isinstance(shard, SharedShard):
                assert shard.other_error is None
    assert found[0]
    assert found[0] == found[1]


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_step_of_rows_that_draw_is_one_exchange_of_candidates(is_changed: bool) -> None:
    """Of each row four numbers, of the one that draws two for each of 3 + 16 candidates and two sums.

    Where a request changes scores, the logit of each of these ids travels too.
    """
    draws = SamplingParams(do_sample=True, top_k=3, seed=1, repetition_penalty=1.5 if is_changed else 1.0)
    shared = SharedShard(
        facts=FACTS, make_sampler=lambda: Sampler(num_slots=FACTS.num_slots, device=torch.device("cpu"))
    )
    with shared:
        shared.send(
            admits=[
                admit(0, [5, 3], max_new=6, ignore_eos=True),
                admit(1, [2, 4], max_new=6, sampling=draws, ignore_eos=True),
            ]
        )
        shared.run_to_end(0, 1)
    assert shared.other_error is None
    num_words = (5 * 2 + 3 * 19 + 2) if is_changed else (4 * 2 + 2 * 19 + 2)
    assert shared.meeting.sent_bytes == [4 * num_words] * 6
    assert not any(len(entry.look.rows) for entry in shared.channel.entries if entry.look is not None)
