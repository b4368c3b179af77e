"""Messages that are read and written, compared with messages written by hand."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from textmill_proto.v1 import shard_pb2 as pb
from textmill_shard.server.wire import (
    facts_to_wire,
    heartbeat_to_wire,
    hello_to_wire,
    plan_from_wire,
    rejection_to_wire,
    result_to_wire,
)
from textmill_shard.slots.plan import (
    Budget,
    Drop,
    Grammar,
    Heartbeat,
    PlanRejection,
    SlotError,
    SlotErrorCode,
    SlotPromptLogprobs,
    StepResult,
    TopTokens,
)
from textmill_shard.slots.plan_check import PlanRejected
from textmill_shard.slots.sampling_params import SamplingParams

from tests.fakes.step_harness import FACTS, ids


def u32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def f32(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def floats(*values: float) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    return np.array(values, dtype=np.float32)


def test_every_field_of_an_admit_is_read() -> None:
    sampling = pb.Sampling(
        do_sample=True,
        temperature=0.5,
        top_k=7,
        top_p=0.25,
        min_p=0.125,
        typical_p=0.75,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=2.0,
        dry_multiplier=0.75,
        dry_base=1.5,
        dry_allowed_length=3,
        dry_breaker_ids=u32(5, 6),
        allowed_ids=u32(8, 9),
        bad_sequences=[u32(1, 2), u32(3)],
        seed=2**64 - 1,
        logit_bias_ids=u32(3, 4),
        logit_bias_values=f32(-1.0, 100.0),
    )
    message = pb.Admit(
        request_id=2**63,
        slot=3,
        prompt_ids=u32(1, 2**20),
        output_ids=u32(9),
        num_cached_tokens=4,
        copied_block_id=0,
        block_ids=[u32(7, 8)],
        max_new_tokens=20,
        min_new_tokens=5,
        stop_ids=u32(6, 7),
        ignore_eos=True,
        sampling=sampling,
        logprobs=True,
        top_n_tokens=3,
        prompt_logprobs_from=1,
        prompt_top_n_tokens=2,
        long_rope=True,
        num_encoder_tokens=1,
    )
    (admit,) = plan_from_wire(pb.Plan(number=1, admits=[message])).admits
    assert admit.request_id == 2**63
    assert admit.slot == 3
    assert admit.prompt_ids.tolist() == [1, 2**20]
    assert admit.output_ids.tolist() == [9]
    assert admit.num_cached_tokens == 4
    assert admit.copied_block_id == 0
    assert admit.block_ids.tolist() == [7, 8]
    assert admit.max_new_tokens == 20
    assert admit.stop_ids == (6, 7)
    assert admit.ignore_eos
    assert admit.prompt_logprobs_from == 1
    assert admit.prompt_top_n_tokens == 2
    assert admit.is_long_rope
    assert admit.num_encoder_tokens == 1
    assert admit.sampling == SamplingParams(
        do_sample=True,
        temperature=0.5,
        top_k=7,
        top_p=0.25,
        min_p=0.125,
        typical_p=0.75,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=2.0,
        dry_multiplier=0.75,
        dry_base=1.5,
        dry_allowed_length=3,
        dry_breaker_ids=(5, 6),
        allowed_ids=(8, 9),
        bad_sequences=((1, 2), (3,)),
        seed=2**64 - 1,
        logit_bias=((3, -1.0), (4, 100.0)),
        min_new_tokens=5,
        wants_logprobs=True,
        top_n_tokens=3,
    )


def test_absent_fields_are_none_or_empty() -> None:
    plan = plan_from_wire(pb.Plan(number=3, admits=[pb.Admit(slot=1, prompt_ids=u32(1))]))
    assert plan.budget is None
    assert plan.admits[0].prompt_logprobs_from is None
    assert plan.admits[0].block_ids.tolist() == []


def test_drops_extends_and_budget_are_read() -> None:
    message = pb.Plan(
        number=8,
        drops=[pb.Drop(slot=1, request_id=5)],
        extends=[pb.Extend(slot=2, request_id=6, block_ids=[u32(30, 31)])],
        budget=pb.Budget(max_step_tokens=9, max_prefill_tokens=8, max_chunk_tokens=7),
    )
    plan = plan_from_wire(message)
    assert plan.number == 8
    assert plan.drops == (Drop(slot=1, request_id=5),)
    assert (plan.extends[0].slot, plan.extends[0].request_id) == (2, 6)
    assert plan.extends[0].block_ids.tolist() == [30, 31]
    assert plan.budget == Budget(max_step_tokens=9, max_prefill_tokens=8, max_chunk_tokens=7)


@pytest.mark.parametrize(
    ("admit", "field"),
    [
        (pb.Admit(slot=2, prompt_ids=b"12345"), "admits.prompt_ids"),
        (pb.Admit(slot=2, output_ids=b"1"), "admits.output_ids"),
        (pb.Admit(slot=2, stop_ids=b"1"), "admits.stop_ids"),
        (pb.Admit(slot=2, block_ids=[b"1"]), "admits.block_ids"),
        (pb.Admit(slot=2, block_ids=[u32(1), u32(2)]), "admits.block_ids"),
        (pb.Admit(slot=2, sampling=pb.Sampling(logit_bias_ids=b"1")), "admits.sampling.logit_bias_ids"),
        (pb.Admit(slot=2, sampling=pb.Sampling(logit_bias_ids=u32(1))), "admits.sampling.logit_bias_values"),
    ],
)
def test_rule_20_bytes_that_cannot_be_the_field_are_rejected(admit: pb.Admit, field: str) -> None:
    with pytest.raises(PlanRejected) as rejected:
        plan_from_wire(pb.Plan(number=4, admits=[admit]))
    rejection = rejected.value.rejection
    assert (rejection.plan, rejection.slot, rejection.field) == (4, 2, field)


def test_every_field_of_a_result_is_written() -> None:
    result = StepResult(
        step=5,
        plan_applied=3,
        slots=ids([4, 1]),
        tokens=ids([70000, 2]),
        flags=ids([0, 5]),
        prefill_slots=ids([2]),
        prefill_computed=ids([300]),
        starved_slots=ids([6]),
        errors=(SlotError(7, 70, SlotErrorCode.NOT_FINITE, "NaN"), SlotError(8, 80, SlotErrorCode.INTERNAL, "no")),
        logprobs=floats(-0.5, float("nan")),
        top_tokens=(TopTokens(row=1, ids=ids([9, 8]), logprobs=floats(-1.0, -2.0)),),
        prompt_logprobs=(
            SlotPromptLogprobs(
                slot=2,
                request_id=20,
                start=1,
                logprobs=floats(-3.0),
                top_counts=ids([2]),
                top_ids=ids([1, 2]),
                top_logprobs=floats(-1.5, -2.5),
            ),
        ),
        step_ns=10**12,
        device_ns=7,
    )
    expected = pb.StepResult(
        step=5,
        plan_applied=3,
        slots=u32(4, 1),
        tokens=u32(70000, 2),
        flags=bytes([0, 5]),
        prefill_slots=u32(2),
        prefill_computed=u32(300),
        starved_slots=u32(6),
        errors=[
            pb.SlotError(slot=7, request_id=70, code=pb.SLOT_ERROR_CODE_NOT_FINITE, message="NaN"),
            pb.SlotError(slot=8, request_id=80, code=pb.SLOT_ERROR_CODE_INTERNAL, message="no"),
        ],
        logprobs=f32(-0.5, float("nan")),
        top_tokens=[pb.TopTokens(row=1, ids=u32(9, 8), logprobs=f32(-1.0, -2.0))],
        prompt_logprobs=[
            pb.PromptLogprobs(
                slot=2,
                request_id=20,
                start=1,
                logprobs=f32(-3.0),
                top_counts=u32(2),
                top_ids=u32(1, 2),
                top_logprobs=f32(-1.5, -2.5),
            )
        ],
        step_ns=10**12,
        device_ns=7,
    )
    assert result_to_wire(9, result) == pb.FromShard(epoch=9, result=expected)


def test_a_result_that_only_acknowledges_is_nearly_empty() -> None:
    expected = pb.FromShard(epoch=1, result=pb.StepResult(plan_applied=4))
    assert result_to_wire(1, StepResult(step=0, plan_applied=4)) == expected


def test_heartbeat_rejection_and_hello_are_written() -> None:
    beat = Heartbeat(last_step=4, last_step_age_ms=20, plan_applied=2, overdue_ms=7, num_memory_faults=3)
    beat = replace(beat, media_bytes=2**33, num_media_encodes=5)
    expected = pb.Heartbeat(last_step=4, last_step_age_ms=20, plan_applied=2, overdue_ms=7, num_memory_faults=3)
    expected.MergeFrom(pb.Heartbeat(media_bytes=2**33, num_media_encodes=5))
    assert heartbeat_to_wire(3, beat) == pb.FromShard(epoch=3, heartbeat=expected)
    rejection = PlanRejection(plan=6, slot=2, field="admits.slot", message="taken")
    rejected = pb.PlanRejected(plan=6, slot=2, field="admits.slot", message="taken")
    assert rejection_to_wire(3, rejection) == pb.FromShard(epoch=3, rejected=rejected)
    hello = hello_to_wire(3, FACTS)
    assert hello.epoch == 3
    assert hello.hello.info == facts_to_wire(FACTS)


def test_the_facts_are_written() -> None:
    facts = replace(FACTS, model_sha="abc", tokenizer_digest="ff", weight_bytes=2**40, kv_bytes=2**35, rope_border=4096)
    facts = replace(facts, decoder_prompt_ids=(2, 0), max_encoder_tokens=1024)
    facts = replace(facts, adapter_bytes=2**33, max_adapter_rank=64, adapter_digests=(b"a" * 16, b"b" * 16))
    facts = replace(facts, media_kinds=("llava",), media_cache_bytes=2**34, media_row_bytes=7168)
    facts = replace(facts, uncut_spans=True, uncut_prompts=True, kv_dtype="fp8_e5m2")
    assert facts_to_wire(facts) == pb.ShardInfo(
        protocol_version=4,
        model_id="prefix",
        model_sha="abc",
        model_type="prefix",
        dtype="float32",
        device="cpu",
        rank=0,
        world_size=1,
        block_size=4,
        num_blocks=32,
        num_slots=4,
        max_step_tokens=64,
        vocab_size=50,
        eos_token_ids=[49],
        layout="flat",
        features=["prefix_cache", "prompt_logprobs"],
        tokenizer_digest="ff",
        max_model_tokens=100,
        weight_bytes=2**40,
        kv_bytes=2**35,
        rope_border=4096,
        decoder_prompt_ids=[2, 0],
        max_encoder_tokens=1024,
        adapter_bytes=2**33,
        max_adapter_rank=64,
        adapter_digests=[b"a" * 16, b"b" * 16],
        media_kinds=["llava"],
        media_cache_bytes=2**34,
        media_row_bytes=7168,
        uncut_spans=True,
        uncut_prompts=True,
        kv_dtype="fp8_e5m2",
    )


def test_grammar_and_watermark_are_read() -> None:
    message = pb.Admit(prompt_ids=u32(1), grammar=pb.Grammar(text="start: /ä{2}/"), watermark=True)
    (admit,) = plan_from_wire(pb.Plan(number=1, admits=[message])).admits
    assert admit.grammar == Grammar("start: /ä{2}/")
    assert admit.sampling.watermark
    (plain,) = plan_from_wire(pb.Plan(number=1, admits=[pb.Admit(prompt_ids=u32(1))])).admits
    assert plain.grammar is None
    assert not plain.sampling.watermark
