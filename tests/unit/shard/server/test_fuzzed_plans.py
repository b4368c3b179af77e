"""Any bytes that are a plan are taken or refused by name (rule 20), and change nothing where they are refused."""

import random
from dataclasses import replace

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from textmill_proto.v1 import shard_pb2 as pb
from textmill_shard.server.wire import plan_from_wire
from textmill_shard.slots.plan import PlanRejection, ShardFacts
from textmill_shard.slots.plan_check import MAX_MESSAGE_CHARACTERS, PlanRejected, check_plan
from textmill_shard.slots.slot_table import SlotTable

from tests.fakes.step_harness import BLOCK_SIZE, FACTS, NUM_BLOCKS, NUM_SLOTS

WITH_IMAGES = replace(FACTS, media_kinds=("llava",), uncut_spans=True)
NUMBERS = st.integers(0, 2**32 - 1) | st.integers(0, 40)
IDS = st.lists(NUMBERS, max_size=6).map(lambda values: np.array(values, dtype="<u4").tobytes()) | st.binary(max_size=9)
REALS = st.floats(width=32)
ADMITS = st.builds(
    pb.Admit,
    request_id=NUMBERS,
    slot=NUMBERS,
    prompt_ids=IDS,
    output_ids=IDS,
    num_cached_tokens=NUMBERS,
    block_ids=st.lists(IDS, max_size=2),
    max_new_tokens=NUMBERS,
    stop_ids=IDS,
    num_encoder_tokens=NUMBERS,
    media=st.lists(
        st.builds(
            pb.MediaSpan,
            digest=st.just(bytes(16)) | st.binary(max_size=17),
            start=NUMBERS,
            num_tokens=NUMBERS,
            first_row=NUMBERS,
            grid=IDS,
        ),
        max_size=3,
    ),
    sampling=st.builds(
        pb.Sampling,
        temperature=REALS,
        top_p=REALS,
        min_p=REALS,
        top_k=NUMBERS,
        logit_bias_ids=IDS,
        logit_bias_values=IDS,
    ),
)
PLANS = st.builds(
    pb.Plan,
    number=st.sampled_from([1, 0, 2, 2**63]) | st.just(1),
    drops=st.lists(st.builds(pb.Drop, slot=NUMBERS, request_id=NUMBERS), max_size=3),
    extends=st.lists(
        st.builds(pb.Extend, slot=NUMBERS, request_id=NUMBERS, block_ids=st.lists(IDS, max_size=2)), max_size=3
    ),
    admits=st.lists(ADMITS, max_size=3),
    budget=st.none()
    | st.builds(pb.Budget, max_step_tokens=NUMBERS, max_prefill_tokens=NUMBERS, max_chunk_tokens=NUMBERS),
)


def judge(message: pb.Plan, facts: ShardFacts = FACTS) -> None:
    """Check the plan against an empty table. Only PlanRejected, with a short text, may come out."""
    table = SlotTable(num_slots=NUM_SLOTS, block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS)
    rejection = PlanRejection(plan=0, slot=0, field="none", message="")
    try:
        check_plan(plan_from_wire(message), last_number=0, table=table, facts=facts)
    except PlanRejected as rejected:
        rejection = rejected.rejection
    assert rejection.field
    assert len(rejection.message) <= MAX_MESSAGE_CHARACTERS + len("...")
    assert not table.is_occupied.any()


@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(message=PLANS, facts=st.sampled_from([FACTS, WITH_IMAGES]))
def test_any_plan_is_taken_or_refused_by_name(message: pb.Plan, facts: ShardFacts) -> None:
    judge(message, facts)


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_with_flipped_bits_is_no_message_or_taken_or_refused(seed: int) -> None:
    source = random.Random(seed)
    admit = pb.Admit(request_id=7, prompt_ids=bytes(20), block_ids=[bytes(range(16))], max_new_tokens=4)
    data = pb.Plan(
        number=1, admits=[admit], budget=pb.Budget(max_step_tokens=8, max_prefill_tokens=8)
    ).SerializeToString()
    num_read = 0
    for _ in range(400):
        flipped = bytearray(data)
        for _ in range(source.randint(1, 3)):
            flipped[source.randrange(len(flipped))] ^= 1 << source.randrange(8)
        try:
            message = pb.Plan.FromString(bytes(flipped))
        except DecodeError:
            continue
        num_read += 1
        judge(message)
    assert num_read > 50
