"""The model shard by hand: the checks on which the property run relies."""

from random import Random

import pytest
from textmill_router.request import BlockId, GenerationParameters, GenerationRequest, RequestId, Slot, token_array
from textmill_router.scheduler.plan import Admit, Budget, Drop, Extend, Plan, ShardPool, StepResult

from tests.fakes.model_shard import EOS_ID, ModelShard, PlanRefused, undisturbed_text

POOL = ShardPool(num_slots=2, num_blocks=8, block_size=4, max_step_tokens=16)
BUDGET = Budget(max_step_tokens=16, max_prefill_tokens=16, max_chunk_tokens=4)


def make_shard(*, has_overlap: bool = False) -> ModelShard:
    shard = ModelShard(POOL, rng=Random(0), has_overlap=has_overlap, max_delay=0)
    shard.send(Plan(1, budget=BUDGET))
    (acknowledged,) = results_of(shard, 3)
    assert (acknowledged.step, acknowledged.plan_applied) == (0, 1)
    return shard


def make_admit(
    request_id: int,
    prompt: list[int],
    blocks: list[int],
    *,
    slot: int = 0,
    cached: int = 0,
    max_new: int = 9,
    ignore_eos: bool = False,
) -> Admit:
    request = GenerationRequest(
        request_id=RequestId(request_id),
        prompt_ids=token_array(prompt),
        max_new_tokens=max_new,
        arrival_s=0.0,
        parameters=GenerationParameters(ignore_eos=ignore_eos),
    )
    return Admit(
        request=request,
        slot=Slot(slot),
        output_ids=token_array([]),
        num_cached_tokens=cached,
        block_ids=tuple(BlockId(block) for block in blocks),
    )


def results_of(shard: ModelShard, num_turns: int = 12) -> list[StepResult]:
    results = []
    for _ in range(num_turns):
        shard.turn()
        while (result := shard.receive()) is not None:
            results.append(result)
    return results


@pytest.mark.parametrize("has_overlap", [False, True])
def test_rule_06_alone_it_gives_the_undisturbed_text_and_nothing_after_the_end(has_overlap: bool):
    for first in range(1, 20):
        shard = make_shard(has_overlap=has_overlap)
        shard.send(Plan(2, admits=(make_admit(1, [first, 5, 6, 7, 8], [0, 1, 2, 3]),)))
        results = results_of(shard)
        tokens = [token for result in results for token in result.tokens]
        assert tokens == undisturbed_text([first, 5, 6, 7, 8], 9, (), False)
        assert [result.flags[-1] & 1 for result in results if result.flags] == [0] * (len(tokens) - 1) + [1]
        assert len(tokens) == 9 or tokens[-1] == EOS_ID


def test_rule_13_a_starved_slot_is_reported_once_and_goes_on_after_its_extend():
    shard = make_shard()
    shard.send(Plan(2, admits=(make_admit(1, [1, 2, 3], [0], ignore_eos=True),)))
    results = results_of(shard)
    assert [list(result.starved_slots) for result in results if result.starved_slots] == [[0]]
    assert sum(len(result.tokens) for result in results) == 2
    shard.send(Plan(3, extends=(Extend(Slot(0), RequestId(1), (BlockId(1), BlockId(2))),)))
    assert sum(len(result.tokens) for result in results_of(shard)) > 0


def test_rule_16_chunks_then_the_rest_of_the_budget_in_order_of_admission():
    shard = make_shard()
    long, other = make_admit(1, [1] * 16, [0, 1, 2, 3]), make_admit(2, [2] * 9, [4, 5, 6, 7], slot=1)
    shard.send(Plan(2, admits=(long, other)))
    first = results_of(shard, 1)[0]
    assert list(zip(first.prefill_slots, first.prefill_computed, strict=True)) == [(0, 12), (1, 4)]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(3), "number"),
        (Plan(2, admits=(make_admit(2, [1, 2], [7], slot=0),)), "admits.slot"),
        (Plan(2, admits=(make_admit(2, [1, 2], [7], slot=2),)), "admits.slot"),
        (Plan(2, admits=(make_admit(2, [1] * 5, [3, 7], slot=1, cached=3),)), "num_cached_tokens"),
        (Plan(2, admits=(make_admit(2, [1] * 4, [3, 7], slot=1, cached=4),)), "num_cached_tokens"),
        (Plan(2, admits=(make_admit(2, [1] * 4, [0], slot=1),)), "two writers"),
        (Plan(2, extends=(Extend(Slot(0), RequestId(1), (BlockId(8),)),)), "block 8 of 8"),
    ],
)
def test_rule_20_a_plan_that_breaks_a_rule_is_refused_whole(plan: Plan, message: str):
    shard = ModelShard(POOL, rng=Random(0), has_overlap=False, max_delay=0)
    shard.send(Plan(1, budget=BUDGET, admits=(make_admit(1, [1, 2], [0]),)))
    shard.turn()
    assert shard.num_seated == 1
    drop = Drop(Slot(1), RequestId(7))
    shard.send(Plan(plan.number, drops=(drop,), extends=plan.extends, admits=plan.admits))
    with pytest.raises(PlanRefused, match=message):
        shard.turn()
    assert shard.num_seated == 1


def test_a_cached_block_that_holds_another_prefix_is_seen():
    shard = make_shard()
    shard.send(Plan(2, admits=(make_admit(1, [1, 2, 3, 4, 5], [0, 1], max_new=1),)))
    results_of(shard)
    shard.send(Plan(3, admits=(make_admit(2, [1, 2, 3, 4, 6], [0, 2], cached=4, max_new=1),)))
    assert sum(len(result.tokens) for result in results_of(shard)) == 1
    shard.send(Plan(4, admits=(make_admit(3, [1, 2, 3, 9, 6], [0, 2], cached=4, max_new=1),)))
    with pytest.raises(AssertionError, match="finds the prefix of another"):
        results_of(shard)
