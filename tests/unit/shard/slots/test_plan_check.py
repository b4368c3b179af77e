"""Rule 20: the refusal of a plan that breaks a rule names plan, slot and field, and the plan changes nothing."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
from textmill_shard.slots.plan import Admit, Budget, Drop, Extend, Grammar, MediaSpan, Plan
from textmill_shard.slots.plan_check import PlanRejected, check_plan
from textmill_shard.slots.sampling_params import SamplingParams
from textmill_shard.slots.slot_table import SlotTable

from tests.fakes.step_harness import BLOCK_SIZE, FACTS, NUM_BLOCKS, NUM_SLOTS, VOCAB_SIZE, admit, drop, extend, ids


def make_table() -> SlotTable:
    """Return a table in which slot 0 has blocks 0 to 2, of which block 0 is computed. The other slots are free."""
    table = SlotTable(num_slots=NUM_SLOTS, block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS)
    table.admit(admit(0, [1] * 6, blocks=[0, 1, 2]))
    table.advance(ids([0]), ids([5]))
    return table


def check(plan: Plan, table: SlotTable | None = None) -> None:
    check_plan(plan, last_number=plan.number - 1, table=table or make_table(), facts=FACTS)


def plan_of(
    *, drops: tuple[Drop, ...] = (), extends: tuple[Extend, ...] = (), admits: tuple[Admit, ...] = (), **rest: Budget
) -> Plan:
    return Plan(5, drops, extends, admits, **rest)  # type: ignore[arg-type]


def sampled(**changes: float) -> Admit:
    return admit(1, [1, 2], sampling=SamplingParams(**changes))  # type: ignore[arg-type]


BAD_PLANS: dict[str, tuple[Callable[[], Plan], int, str]] = {
    "an adapter that is not loaded": (
        lambda: plan_of(admits=(replace(admit(1, [1]), adapter_digest=bytes(16)),)),
        1,
        "admits.adapter_digest",
    ),
    "drop beyond the slots": (lambda: plan_of(drops=(drop(NUM_SLOTS),)), NUM_SLOTS, "drops.slot"),
    "extend beyond the slots": (lambda: plan_of(extends=(extend(9, [20]),)), 9, "extends.slot"),
    "extend with the scratch block": (lambda: plan_of(extends=(extend(0, [NUM_BLOCKS]),)), 0, "extends.block_ids"),
    "extend names a block twice": (lambda: plan_of(extends=(extend(0, [20, 20]),)), 0, "extends.block_ids"),
    "extend with its own block": (lambda: plan_of(extends=(extend(0, [1]),)), 0, "extends.block_ids"),
    "admit to a taken slot": (lambda: plan_of(admits=(admit(0, [1], request_id=1),)), 0, "admits.slot"),
    "two admits to one slot": (
        lambda: plan_of(admits=(admit(1, [1]), admit(1, [1], request_id=9, blocks=[30]))),
        1,
        "admits.slot",
    ),
    "a request seated twice": (lambda: plan_of(admits=(admit(1, [1], request_id=100),)), 1, "admits.request_id"),
    "a request twice in a plan": (
        lambda: plan_of(admits=(admit(1, [1], request_id=9), admit(2, [1], request_id=9))),
        2,
        "admits.request_id",
    ),
    "admit with a held block": (lambda: plan_of(admits=(admit(1, [1], blocks=[2]),)), 1, "admits.block_ids"),
    "one block for two admits": (
        lambda: plan_of(admits=(admit(1, [1], blocks=[20]), admit(2, [1], blocks=[20]))),
        2,
        "admits.block_ids",
    ),
    "cached tokens are no whole blocks": (
        lambda: plan_of(admits=(admit(1, [1] * 6, cached=3, blocks=[20, 21]),)),
        1,
        "admits.num_cached_tokens",
    ),
    "places to copy but no block": (
        lambda: plan_of(admits=(admit(1, [1] * 7, cached=5, blocks=[0, 20]),)),
        1,
        "admits.num_cached_tokens",
    ),
    "a block to copy but no places": (
        lambda: plan_of(admits=(admit(1, [1] * 7, cached=4, blocks=[0, 20], copied=1),)),
        1,
        "admits.num_cached_tokens",
    ),
    "copies from beyond the blocks": (
        lambda: plan_of(admits=(admit(1, [1] * 7, cached=5, blocks=[0, 20], copied=NUM_BLOCKS),)),
        1,
        "admits.copied_block_id",
    ),
    "copies a place still being written": (
        lambda: plan_of(admits=(admit(1, [1] * 7, cached=6, blocks=[0, 20], copied=1),)),
        1,
        "admits.copied_block_id",
    ),
    "copies from an admit of the same plan": (
        lambda: plan_of(
            admits=(admit(1, [1] * 3, blocks=[20]), admit(2, [1] * 3, cached=1, blocks=[21], copied=20)),
        ),
        2,
        "admits.copied_block_id",
    ),
    "no block for the copied places": (
        lambda: plan_of(admits=(admit(1, [1] * 7, cached=5, blocks=[0], copied=1),)),
        1,
        "admits.block_ids",
    ),
    "all tokens cached": (
        lambda: plan_of(admits=(admit(1, [1] * 4, cached=4, blocks=[20, 21]),)),
        1,
        "admits.num_cached_tokens",
    ),
    "cached block still being written": (
        lambda: plan_of(admits=(admit(1, [1] * 9, cached=8, blocks=[0, 1, 21]),)),
        1,
        "admits.num_cached_tokens",
    ),
    "cached block of the same plan": (
        lambda: plan_of(admits=(admit(1, [1] * 6, blocks=[20, 21]), admit(2, [1] * 6, cached=4, blocks=[20, 22]))),
        2,
        "admits.num_cached_tokens",
    ),
    "cached block that the next occupant of a dropped slot will write": (
        lambda: plan_of(
            drops=(drop(0),),
            admits=(
                admit(0, [1] * 6, blocks=[20, 21], request_id=9),
                admit(2, [1] * 6, cached=4, blocks=[20, 22]),
            ),
        ),
        2,
        "admits.num_cached_tokens",
    ),
    "fewer blocks than cached": (
        lambda: plan_of(admits=(admit(1, [1] * 10, cached=8, blocks=[0]),)),
        1,
        "admits.block_ids",
    ),
    "no prompt": (lambda: plan_of(admits=(admit(1, []),)), 1, "admits.prompt_ids"),
    "prompt beyond the vocabulary": (lambda: plan_of(admits=(admit(1, [VOCAB_SIZE]),)), 1, "admits.prompt_ids"),
    "output beyond the vocabulary": (
        lambda: plan_of(admits=(admit(1, [1], output=[VOCAB_SIZE]),)),
        1,
        "admits.output_ids",
    ),
    "stop id beyond the vocabulary": (
        lambda: plan_of(admits=(admit(1, [1], stop_ids=[VOCAB_SIZE]),)),
        1,
        "admits.stop_ids",
    ),
    "no output left": (lambda: plan_of(admits=(admit(1, [1], output=[2], max_new=1),)), 1, "admits.max_new_tokens"),
    "longer than the positions": (
        lambda: plan_of(admits=(admit(1, [1], max_new=100, blocks=[20]),)),
        1,
        "admits.max_new_tokens",
    ),
    "prompt logprobs of a cached token": (
        lambda: plan_of(admits=(admit(1, [1] * 9, cached=4, blocks=[0, 20, 21], prompt_logprobs_from=4),)),
        1,
        "admits.prompt_logprobs_from",
    ),
    "prompt logprobs beyond the prompt": (
        lambda: plan_of(admits=(admit(1, [1] * 3, prompt_logprobs_from=4),)),
        1,
        "admits.prompt_logprobs_from",
    ),
    "temperature 0": (lambda: plan_of(admits=(sampled(temperature=0.0),)), 1, "admits.sampling.temperature"),
    "top_p 0": (lambda: plan_of(admits=(sampled(top_p=0.0),)), 1, "admits.sampling.top_p"),
    "min_p 1": (lambda: plan_of(admits=(sampled(min_p=1.0),)), 1, "admits.sampling.min_p"),
    "typical_p above 1": (lambda: plan_of(admits=(sampled(typical_p=1.5),)), 1, "admits.sampling.typical_p"),
    "dry_multiplier below 0": (
        lambda: plan_of(admits=(sampled(dry_multiplier=-1.0),)),
        1,
        "admits.sampling.dry_multiplier",
    ),
    "dry_base below 1": (
        lambda: plan_of(admits=(sampled(dry_multiplier=1.0, dry_base=0.5),)),
        1,
        "admits.sampling.dry_base",
    ),
    "dry_allowed_length 0": (
        lambda: plan_of(admits=(sampled(dry_multiplier=1.0, dry_allowed_length=0),)),
        1,
        "admits.sampling.dry_allowed_length",
    ),
    "a breaker beyond the vocabulary": (
        lambda: plan_of(admits=(sampled(dry_multiplier=1.0, dry_breaker_ids=(50,)),)),
        1,
        "admits.sampling.dry_breaker_ids",
    ),
    "an allowed id beyond the vocabulary": (
        lambda: plan_of(admits=(sampled(allowed_ids=(1, 50)),)),
        1,
        "admits.sampling.allowed_ids",
    ),
    "a bad sequence beyond the vocabulary": (
        lambda: plan_of(admits=(sampled(bad_sequences=((1,), (2, 50))),)),
        1,
        "admits.sampling.bad_sequences",
    ),
    "an empty bad sequence": (
        lambda: plan_of(admits=(sampled(bad_sequences=((1,), ())),)),
        1,
        "admits.sampling.bad_sequences",
    ),
    "repetition_penalty 0": (
        lambda: plan_of(admits=(sampled(repetition_penalty=0.0),)),
        1,
        "admits.sampling.repetition_penalty",
    ),
    "a penalty that is no number": (
        lambda: plan_of(admits=(sampled(presence_penalty=float("nan")),)),
        1,
        "admits.sampling",
    ),
    "bias beyond the vocabulary": (
        lambda: plan_of(admits=(admit(1, [1], sampling=SamplingParams(logit_bias=((VOCAB_SIZE, 1.0),))),)),
        1,
        "admits.sampling.logit_bias_ids",
    ),
    "budget below the slots": (lambda: plan_of(budget=Budget(3, 3, 3)), 0, "budget.max_step_tokens"),
    "budget above the memory": (lambda: plan_of(budget=Budget(65, 3, 3)), 0, "budget.max_step_tokens"),
    "no prefill budget": (lambda: plan_of(budget=Budget(8, 0, 3)), 0, "budget.max_prefill_tokens"),
    "no chunk": (lambda: plan_of(budget=Budget(8, 3, 0)), 0, "budget.max_chunk_tokens"),
}


@pytest.mark.parametrize("case", BAD_PLANS)
def test_rule_20_a_plan_that_breaks_a_rule_is_named(case: str) -> None:
    build, slot, field = BAD_PLANS[case]
    with pytest.raises(PlanRejected) as rejected:
        check(build())
    rejection = rejected.value.rejection
    assert (rejection.plan, rejection.slot, rejection.field) == (5, slot, field)
    assert rejection.message


@pytest.mark.parametrize("number", [4, 6, 0])
def test_rule_01_plans_are_numbered_without_gaps(number: int) -> None:
    with pytest.raises(PlanRejected, match="plan 5 comes next"):
        check_plan(Plan(number), last_number=4, table=make_table(), facts=FACTS)


GOOD_PLANS: dict[str, Callable[[], Plan]] = {
    "empty": plan_of,
    "rule 5: drop of a gone occupant": lambda: plan_of(drops=(drop(1), drop(0, request_id=9))),
    "rule 5: extend of a gone occupant with a block of another": lambda: plan_of(extends=(extend(1, [2]),)),
    "rule 8: the blocks of a drop go to an admit": lambda: plan_of(
        drops=(drop(0),), admits=(admit(0, [1] * 5, blocks=[2, 1, 0], request_id=9),)
    ),
    "rule 8: the blocks of a drop go to an extend": lambda: plan_of(drops=(drop(0),), extends=(extend(1, [1]),)),
    "rule 10: a full block is shared with its writer": lambda: plan_of(
        admits=(admit(1, [1] * 6, cached=4, blocks=[0, 20]),)
    ),
    "rule 10: two requests share a full block": lambda: plan_of(
        admits=(admit(1, [1] * 6, cached=4, blocks=[0, 20]), admit(2, [1] * 6, cached=4, blocks=[0, 21]))
    ),
    "a cached block that nobody holds": lambda: plan_of(admits=(admit(1, [1] * 6, cached=4, blocks=[9, 20]),)),
    "rule 10: computed places are copied": lambda: plan_of(
        admits=(admit(1, [1] * 7, cached=5, blocks=[0, 20], copied=1),)
    ),
    "rule 10: places of a block that nobody writes are copied": lambda: plan_of(
        admits=(admit(1, [1] * 4, cached=3, blocks=[20], copied=9),)
    ),
    "no places yet": lambda: plan_of(admits=(admit(1, [1] * 6, blocks=[]),)),
    "prompt logprobs behind the cache": lambda: plan_of(
        admits=(admit(1, [1] * 9, cached=4, blocks=[0, 20, 21], prompt_logprobs_from=5),)
    ),
    "the whole window": lambda: plan_of(admits=(admit(1, [1], max_new=99, blocks=[20]),)),
    "the widest budget": lambda: plan_of(budget=Budget(64, 64, 64)),
}


@pytest.mark.parametrize("case", GOOD_PLANS)
def test_a_plan_that_keeps_the_rules_passes_and_changes_nothing(case: str) -> None:
    table = make_table()
    before = (table.num_holders.copy(), table.writers.copy(), table.request_ids.copy())
    check(GOOD_PLANS[case](), table)
    for array, copy in zip((table.num_holders, table.writers, table.request_ids), before, strict=True):
        assert array.tolist() == copy.tolist()


def test_prompt_logprobs_of_a_model_without_them_are_rejected() -> None:
    plan = plan_of(admits=(admit(1, [1, 2], prompt_logprobs_from=1),))
    with pytest.raises(PlanRejected, match="no prompt log-probabilities"):
        check_plan(plan, last_number=4, table=make_table(), facts=replace(FACTS, features=("prefix_cache",)))


def test_a_sharer_that_outlives_the_writer_keeps_its_block() -> None:
    table = make_table()
    table.admit(admit(1, [1] * 6, cached=4, blocks=[0, 20]))
    table.end(0)
    with pytest.raises(PlanRejected, match=r"blocks \[0\] are held"):
        check(plan_of(admits=(admit(2, [1] * 3, blocks=[0]),)), table)
    check(plan_of(admits=(admit(2, [1] * 6, cached=4, blocks=[0, 1]),)), table)


@pytest.mark.parametrize(("num_prompt", "is_long", "is_right"), [(6, False, True), (6, True, False), (7, True, True)])
def test_the_rope_side_is_that_of_prompt_and_output_together(num_prompt: int, is_long: bool, is_right: bool) -> None:
    facts = replace(FACTS, rope_border=10)
    plan = plan_of(admits=(replace(admit(1, [1] * num_prompt, max_new=4), is_long_rope=is_long),))
    with nullcontext() if is_right else pytest.raises(PlanRejected, match=r"admits\.long_rope"):
        check_plan(plan, last_number=plan.number - 1, table=make_table(), facts=facts)


def test_a_model_with_one_rotary_table_has_no_long_side() -> None:
    with pytest.raises(PlanRejected, match=r"admits\.long_rope"):
        check(plan_of(admits=(replace(admit(1, [1] * 6), is_long_rope=True),)))


@pytest.mark.parametrize(("num_encoder", "is_right"), [(0, False), (1, True), (5, True), (6, False)])
def test_rule_16_an_encoder_reads_at_least_a_token_and_leaves_one(num_encoder: int, is_right: bool) -> None:
    facts = replace(FACTS, layout="encoder_decoder", decoder_prompt_ids=(1,))
    plan = plan_of(admits=(replace(admit(1, [1] * 6), num_encoder_tokens=num_encoder),))
    with nullcontext() if is_right else pytest.raises(PlanRejected, match=r"admits\.num_encoder_tokens"):
        check_plan(plan, last_number=plan.number - 1, table=make_table(), facts=facts)


@pytest.mark.parametrize("changes", [{"max_step_tokens": 4}, {"max_encoder_tokens": 4}])
def test_rule_16_what_no_step_or_position_holds_is_rejected(changes: dict[str, int]) -> None:
    facts = replace(FACTS, layout="encoder_decoder", decoder_prompt_ids=(1,), **changes)
    for num_encoder, is_right in ((4, True), (5, False)):
        plan = plan_of(admits=(replace(admit(1, [1] * 6), num_encoder_tokens=num_encoder),))
        with nullcontext() if is_right else pytest.raises(PlanRejected, match=r"admits\.num_encoder_tokens"):
            check_plan(plan, last_number=plan.number - 1, table=make_table(), facts=facts)


def test_positions_of_a_decoder_begin_behind_what_the_encoder_reads() -> None:
    facts = replace(FACTS, layout="encoder_decoder", decoder_prompt_ids=(1,), max_model_tokens=6)
    for max_new, is_right in ((5, True), (6, False)):
        plan = plan_of(admits=(replace(admit(1, [1] * 9, max_new=max_new), num_encoder_tokens=8),))
        with nullcontext() if is_right else pytest.raises(PlanRejected, match=r"admits\.max_new_tokens"):
            check_plan(plan, last_number=plan.number - 1, table=make_table(), facts=facts)


def test_a_model_without_an_encoder_has_no_tokens_for_one() -> None:
    with pytest.raises(PlanRejected, match=r"admits\.num_encoder_tokens"):
        check(plan_of(admits=(replace(admit(1, [1] * 6), num_encoder_tokens=3),)))


def test_rule_20_a_grammar_for_a_model_that_allows_none_is_rejected() -> None:
    plan = plan_of(admits=(admit(1, [1, 2], grammar=Grammar("start: /a/")),))
    with pytest.raises(PlanRejected, match="allows no grammars"):
        check(plan, make_table())
    facts = replace(FACTS, features=("grammar",))
    check_plan(plan, last_number=4, table=make_table(), facts=facts)


@pytest.mark.parametrize(("layout", "num_encoder"), [("state", 0), ("encoder_decoder", 5)])
def test_rule_15_some_layouts_share_no_prefix(layout: str, num_encoder: int) -> None:
    facts = replace(FACTS, layout=layout, decoder_prompt_ids=(1,) * bool(num_encoder))
    request = replace(admit(1, [1] * 6, blocks=[0, 20, 21], cached=4), num_encoder_tokens=num_encoder)
    plan = plan_of(admits=(request,))
    with pytest.raises(PlanRejected, match=r"admits\.num_cached_tokens"):
        check_plan(plan, last_number=plan.number - 1, table=make_table(), facts=facts)
    plan = plan_of(admits=(replace(request, num_encoder_tokens=0),))
    check_plan(plan, last_number=plan.number - 1, table=make_table(), facts=FACTS)


DIGEST = b"d" * 16
MEDIA_FACTS = replace(FACTS, media_kinds=("llava",), max_step_tokens=16)
PLACEHOLDER = VOCAB_SIZE  # an id that the logits do not cover, as the image id of PaliGemma


def check_media(spans: tuple[MediaSpan, ...], **facts: bool) -> None:
    """Check a prompt of 20 tokens, of which tokens 2 to 18 are placeholders beyond the vocabulary."""
    request = replace(admit(1, [1, 1, *[PLACEHOLDER] * 17, 1]), media=spans)
    check_plan(plan_of(admits=(request,)), last_number=4, table=make_table(), facts=replace(MEDIA_FACTS, **facts))


def test_rule_33_spans_in_order_are_taken_and_their_ids_may_lie_outside_the_vocabulary() -> None:
    check_media((MediaSpan(DIGEST, 2, 10, 0), MediaSpan(DIGEST, 12, 7, 10, (1, 4, 4))))


@pytest.mark.parametrize(
    ("spans", "field"),
    [
        ((MediaSpan(b"short", 2, 17, 0),), "admits.media.digest"),
        ((MediaSpan(DIGEST, 2, 0, 0), MediaSpan(DIGEST, 2, 17, 0)), "admits.media.start"),
        ((MediaSpan(DIGEST, 2, 17, 0), MediaSpan(DIGEST, 18, 1, 0)), "admits.media.start"),
        ((MediaSpan(DIGEST, 2, 19, 0),), "admits.media.start"),
        ((MediaSpan(DIGEST, 2, 17, 0, (1, 2)),), "admits.media.grid"),
        ((MediaSpan(DIGEST, 2, 16, 0),), "admits.prompt_ids"),  # the last placeholder is in no span
    ],
)
def test_rule_33_a_span_that_breaks_the_rule_is_named(spans: tuple[MediaSpan, ...], field: str) -> None:
    with pytest.raises(PlanRejected) as caught:
        check_media(spans)
    assert caught.value.rejection.field == field


def test_rule_16_a_span_that_is_not_cut_must_fit_a_step() -> None:
    check_media((MediaSpan(DIGEST, 2, 10, 0), MediaSpan(DIGEST, 12, 7, 10)), uncut_spans=True)
    with pytest.raises(PlanRejected, match=r"admits\.media\.num_tokens: wanted at most 16 \(one step\), got 17"):
        check_media((MediaSpan(DIGEST, 2, 17, 0),), uncut_spans=True)


def test_rule_33_spans_for_a_model_of_text_are_rejected() -> None:
    request = replace(admit(1, [1, 1, 1]), media=(MediaSpan(DIGEST, 1, 1, 0),))
    with pytest.raises(PlanRejected, match="this model takes text only"):
        check(plan_of(admits=(request,)))
