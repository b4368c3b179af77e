from dataclasses import replace

from textmill_router.engine.wire import plan_to_proto
from textmill_router.request import (
    BlockId,
    GenerationParameters,
    GenerationRequest,
    Grammar,
    RequestId,
    SamplingParameters,
    Slot,
    token_array,
)
from textmill_router.scheduler.plan import Admit, Budget, Drop, Extend
from textmill_router.scheduler.plan_builder import MAX_PLAN_BYTES, PlanBuilder

BUDGET = Budget(8, 8, 8)
PLAIN = GenerationParameters(min_new_tokens=2**31, ignore_eos=True)
LONG = replace(
    PLAIN,
    sampling=SamplingParameters(
        do_sample=True,
        temperature=0.7,
        top_k=2**31,
        top_p=0.9,
        min_p=0.1,
        typical_p=0.9,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        seed=2**63,
        logit_bias=tuple((number, 0.5) for number in range(20)),
        dry_multiplier=0.8,
        dry_base=1.75,
        dry_allowed_length=2**31,
        dry_breaker_ids=tuple(range(500)),
        allowed_ids=tuple(range(400)),
        bad_sequences=tuple((number, 1) for number in range(300)),
    ),
)


def make_admit(request_id: int, num_tokens: int, parameters: GenerationParameters = PLAIN) -> Admit:
    request = GenerationRequest(
        request_id=RequestId(request_id),
        prompt_ids=token_array([1] * num_tokens),
        max_new_tokens=2**31,
        arrival_s=0.0,
        parameters=parameters,
        stop_ids=(1, 2, 3),
        wants_logprobs=True,
        top_n_tokens=2**31,
        prompt_top_n_tokens=2**31,
    )
    return Admit(
        request=request,
        slot=Slot(0),
        output_ids=token_array([]),
        num_cached_tokens=0,
        block_ids=(),
        prompt_logprobs_from=2**31,
    )


def test_rule_01_the_first_plan_holds_the_budget_and_no_change_is_no_plan():
    builder = PlanBuilder(BUDGET)
    (plan,) = builder.build()
    assert (plan.number, plan.budget) == (1, BUDGET)
    assert builder.build() == ()
    assert builder.num_plans == 1


def test_rule_01_changes_of_one_turn_are_one_plan():
    builder = PlanBuilder(BUDGET)
    builder.admit(make_admit(3, 4))
    builder.extend(Extend(Slot(1), RequestId(2), (BlockId(5),)))
    builder.drop(Drop(Slot(2), RequestId(1)))
    (plan,) = builder.build()
    assert (len(plan.drops), len(plan.extends), len(plan.admits)) == (1, 1, 1)


def test_rule_04_a_long_admit_goes_alone_and_drops_stay_before_admits():
    builder = PlanBuilder(BUDGET, max_plan_bytes=4_000)
    for request_id, num_tokens in ((1, 100), (2, 2_000), (3, 100), (4, 100)):
        builder.admit(make_admit(request_id, num_tokens))
    builder.drop(Drop(Slot(1), RequestId(9)))
    plans = builder.build()
    assert [plan.number for plan in plans] == [1, 2, 3]
    assert [[admit.request_id for admit in plan.admits] for plan in plans] == [[1], [2], [3, 4]]
    assert [len(plan.drops) for plan in plans] == [1, 0, 0]
    assert [plan.budget for plan in plans] == [BUDGET, None, None]


def test_rule_04_the_encoded_plan_is_under_one_mebibyte():
    builder = PlanBuilder(BUDGET)
    for number in range(3_000):
        builder.admit(make_admit(2**40 + number, number % 300, LONG))
        builder.extend(Extend(Slot(70_000), RequestId(2**40), tuple(BlockId(2**31 + i) for i in range(number % 7))))
        builder.drop(Drop(Slot(70_000), RequestId(2**40)))
    plans = builder.build()
    assert len(plans) > 1
    for plan in plans:
        assert len(plan_to_proto(plan, 2**40).SerializeToString()) <= MAX_PLAN_BYTES


def test_rule_04_a_grammar_counts_with_its_encoded_length():
    builder = PlanBuilder(BUDGET)
    grammar = Grammar("\N{GRINNING FACE}" * 100_000)
    for request_id in (1, 2, 3):
        builder.admit(make_admit(request_id, 4, replace(PLAIN, grammar=grammar)))
    sizes_bytes = [plan_to_proto(plan, 1).ByteSize() for plan in builder.build()]
    assert len(sizes_bytes) == 2
    assert max(sizes_bytes) <= MAX_PLAN_BYTES
