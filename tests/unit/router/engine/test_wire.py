"""Messages compared with bytes written by hand from shard.proto."""

import math
import struct
from array import array

import pytest
from textmill_proto.v1 import shard_pb2
from textmill_router.engine.wire import (
    WireError,
    heartbeat_to_proto,
    plan_to_proto,
    rejected_from_proto,
    result_from_proto,
)
from textmill_router.request import (
    BlockId,
    FailureCode,
    GenerationParameters,
    GenerationRequest,
    Grammar,
    RequestId,
    SamplingParameters,
    Slot,
)
from textmill_router.scheduler.plan import Admit, Budget, Drop, Extend, Plan, StepResult


def blocks(*ids: int) -> tuple[BlockId, ...]:
    return tuple(BlockId(i) for i in ids)


def test_plan_carries_every_field() -> None:
    sampling = SamplingParameters(
        do_sample=True,
        temperature=0.5,
        top_k=3,
        top_p=0.75,
        min_p=0.25,
        typical_p=0.875,
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
        logit_bias=((7, -1.5), (9, 2.5)),
    )
    request = GenerationRequest(
        request_id=RequestId(2**40),
        prompt_ids=array("I", [1, 2**32 - 1]),
        max_new_tokens=20,
        arrival_s=0.0,
        parameters=GenerationParameters(
            sampling=sampling,
            min_new_tokens=2,
            ignore_eos=True,
            grammar=Grammar("start: /[ä]+/"),
            watermark=True,
        ),
        stop_ids=(11, 12),
        wants_logprobs=True,
        top_n_tokens=4,
        prompt_top_n_tokens=2,
        num_encoder_tokens=1,
    )
    admit = Admit(
        request=request,
        slot=Slot(3),
        output_ids=array("I", [258]),
        num_cached_tokens=0,
        block_ids=blocks(5, 6),
        prompt_logprobs_from=1,
        is_long_rope=True,
        copied_block_id=BlockId(0),
        caller=6,
        caller_weight=2.5,
    )
    plan = Plan(
        number=9,
        drops=(Drop(Slot(1), RequestId(10)),),
        extends=(Extend(Slot(2), RequestId(11), blocks(258)),),
        admits=(admit,),
        budget=Budget(max_step_tokens=100, max_prefill_tokens=80, max_chunk_tokens=40),
    )
    message = plan_to_proto(plan, epoch=4)
    expected = shard_pb2.ToShard(
        epoch=4,
        plan=shard_pb2.Plan(
            number=9,
            drops=[shard_pb2.Drop(slot=1, request_id=10)],
            extends=[shard_pb2.Extend(slot=2, request_id=11, block_ids=[b"\x02\x01\x00\x00"])],
            admits=[
                shard_pb2.Admit(
                    request_id=2**40,
                    slot=3,
                    prompt_ids=b"\x01\x00\x00\x00\xff\xff\xff\xff",
                    output_ids=b"\x02\x01\x00\x00",
                    num_cached_tokens=0,
                    block_ids=[b"\x05\x00\x00\x00\x06\x00\x00\x00"],
                    max_new_tokens=20,
                    min_new_tokens=2,
                    stop_ids=b"\x0b\x00\x00\x00\x0c\x00\x00\x00",
                    ignore_eos=True,
                    sampling=shard_pb2.Sampling(
                        do_sample=True,
                        temperature=0.5,
                        top_k=3,
                        top_p=0.75,
                        min_p=0.25,
                        typical_p=0.875,
                        repetition_penalty=1.5,
                        presence_penalty=-0.5,
                        frequency_penalty=2.0,
                        dry_multiplier=0.75,
                        dry_base=1.5,
                        dry_allowed_length=3,
                        dry_breaker_ids=b"\x05\x00\x00\x00\x06\x00\x00\x00",
                        allowed_ids=b"\x08\x00\x00\x00\x09\x00\x00\x00",
                        bad_sequences=[b"\x01\x00\x00\x00\x02\x00\x00\x00", b"\x03\x00\x00\x00"],
                        seed=2**64 - 1,
                        logit_bias_ids=b"\x07\x00\x00\x00\x09\x00\x00\x00",
                        logit_bias_values=struct.pack("<2f", -1.5, 2.5),
                    ),
                    logprobs=True,
                    top_n_tokens=4,
                    prompt_logprobs_from=1,
                    prompt_top_n_tokens=2,
                    grammar=shard_pb2.Grammar(text="start: /[ä]+/"),
                    watermark=True,
                    long_rope=True,
                    num_encoder_tokens=1,
                    copied_block_id=0,
                    caller=6,
                    caller_weight=2.5,
                )
            ],
            budget=shard_pb2.Budget(max_step_tokens=100, max_prefill_tokens=80, max_chunk_tokens=40),
        ),
    )
    assert message == expected


def test_absent_budget_and_prompt_logprobs_stay_absent() -> None:
    request = GenerationRequest(RequestId(1), array("I", [1]), max_new_tokens=1, arrival_s=0.0)
    admit = Admit(request, Slot(0), array("I"), 0, blocks(0))
    plan = plan_to_proto(Plan(1, admits=(admit,)), epoch=1).plan
    assert not plan.HasField("budget")
    assert not plan.admits[0].HasField("prompt_logprobs_from")


def test_heartbeat_names_the_epoch() -> None:
    assert heartbeat_to_proto(7) == shard_pb2.ToShard(epoch=7, heartbeat=shard_pb2.Heartbeat())


def test_result_is_read_from_packed_bytes() -> None:
    message = shard_pb2.StepResult(
        step=5,
        plan_applied=3,
        slots=b"\x01\x00\x00\x00\x02\x01\x00\x00",
        tokens=b"\x0a\x00\x00\x00\xff\xff\x00\x00",
        flags=b"\x00\x05",
        prefill_slots=b"\x03\x00\x00\x00",
        prefill_computed=b"\x00\x10\x00\x00",
        starved_slots=b"\x04\x00\x00\x00",
        errors=[shard_pb2.SlotError(slot=6, request_id=8, code=shard_pb2.SLOT_ERROR_CODE_NOT_FINITE, message="NaN")],
        logprobs=struct.pack("<2f", -0.5, math.nan),
        top_tokens=[
            shard_pb2.TopTokens(row=1, ids=b"\x09\x00\x00\x00\x08\x00\x00\x00", logprobs=struct.pack("<2f", -1, -2))
        ],
        step_ns=2_000_000,
        device_ns=1_000_000,
    )
    result = result_from_proto(message)
    assert (result.step, result.plan_applied, result.flags) == (5, 3, b"\x00\x05")
    assert list(result.slots) == [1, 258]
    assert list(result.tokens) == [10, 65535]
    assert (list(result.prefill_slots), list(result.prefill_computed)) == ([3], [4096])
    assert list(result.starved_slots) == [4]
    error = result.errors[0]
    assert (error.slot, error.request_id, error.code, error.message) == (6, 8, FailureCode.NOT_FINITE, "NaN")
    assert result.logprobs is not None
    assert result.logprobs[0] == -0.5
    assert math.isnan(result.logprobs[1])
    assert result.top_tokens is not None
    assert list(result.top_tokens) == [1]
    assert list(result.top_tokens[1].ids) == [9, 8]
    assert list(result.top_tokens[1].logprobs) == [-1, -2]
    assert (result.step_s, result.device_s) == pytest.approx((2e-3, 1e-3))


def test_result_without_wishes_has_no_logprobs() -> None:
    result = result_from_proto(shard_pb2.StepResult(plan_applied=2))
    empty = array("I")
    assert result == StepResult(0, 2, empty, empty, b"", empty, empty, empty)


def test_prompt_logprobs_are_cut_by_their_counts() -> None:
    message = shard_pb2.PromptLogprobs(
        slot=1,
        request_id=2,
        start=5,
        logprobs=struct.pack("<2f", -1, -2),
        top_counts=struct.pack("<2I", 2, 1),
        top_ids=struct.pack("<3I", 7, 8, 9),
        top_logprobs=struct.pack("<3f", -0.5, -1, -1.5),
    )
    (found,) = result_from_proto(shard_pb2.StepResult(prompt_logprobs=[message])).prompt_logprobs
    assert (found.slot, found.request_id, found.piece.start, list(found.piece.logprobs)) == (1, 2, 5, [-1, -2])
    assert [(list(top.ids), list(top.logprobs)) for top in found.piece.top] == [([7, 8], [-0.5, -1]), ([9], [-1.5])]


@pytest.mark.parametrize(
    "message",
    [
        shard_pb2.StepResult(slots=b"\x00" * 3, tokens=b"\x00" * 3, flags=b"\x00"),
        shard_pb2.StepResult(slots=b"\x00" * 4, tokens=b"\x00" * 8, flags=b"\x00"),
        shard_pb2.StepResult(slots=b"\x00" * 4, tokens=b"\x00" * 4, flags=b""),
        shard_pb2.StepResult(prefill_slots=b"\x00" * 4),
        shard_pb2.StepResult(slots=b"\x00" * 4, tokens=b"\x00" * 4, flags=b"\x00", logprobs=b"\x00" * 8),
        shard_pb2.StepResult(top_tokens=[shard_pb2.TopTokens(row=0, ids=b"\x00" * 4)]),
        shard_pb2.StepResult(
            prompt_logprobs=[shard_pb2.PromptLogprobs(logprobs=b"\x00" * 4, top_counts=b"\x01\x00\x00\x00")]
        ),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(message: shard_pb2.StepResult) -> None:
    with pytest.raises(WireError):
        result_from_proto(message)


def test_a_rejection_names_slot_field_and_reason() -> None:
    rejected = rejected_from_proto(shard_pb2.PlanRejected(plan=4, slot=2, field="admits.slot", message="taken"))
    assert (rejected.plan_number, rejected.message) == (4, "slot 2, admits.slot: taken")
