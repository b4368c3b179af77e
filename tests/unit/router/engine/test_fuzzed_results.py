"""Any bytes that are a step result are read, or end the stream by a broken rule; nothing else comes out of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textmill_proto.v1 import shard_pb2 as pb
from textmill_router.engine.wire import WireError, result_from_proto
from textmill_router.scheduler.scheduler import StreamBroken

from tests.fakes.scheduler_hand import Hand

NUMBERS = st.integers(0, 5) | st.integers(0, 2**32 - 1)
IDS = st.lists(NUMBERS, max_size=4).map(lambda values: np.array(values, dtype="<u4").tobytes()) | st.binary(max_size=9)
RESULTS = st.builds(
    pb.StepResult,
    step=st.integers(0, 3) | st.just(2**64 - 1),
    plan_applied=st.just(1) | st.integers(0, 3) | st.just(2**64 - 1),
    slots=IDS,
    tokens=IDS,
    flags=st.binary(max_size=4),
    prefill_slots=IDS,
    prefill_computed=IDS,
    starved_slots=IDS,
    errors=st.lists(
        st.builds(pb.SlotError, slot=NUMBERS, request_id=NUMBERS, code=st.integers(0, 9), message=st.text(max_size=5)),
        max_size=2,
    ),
    logprobs=IDS,
    top_tokens=st.lists(st.builds(pb.TopTokens, row=NUMBERS, ids=IDS, logprobs=IDS), max_size=2),
    prompt_logprobs=st.lists(
        st.builds(
            pb.PromptLogprobs,
            slot=NUMBERS,
            request_id=NUMBERS,
            start=NUMBERS,
            logprobs=IDS,
            top_counts=IDS,
            top_ids=IDS,
            top_logprobs=IDS,
        ),
        max_size=2,
    ),
    step_ns=NUMBERS,
    device_ns=NUMBERS,
)


@settings(max_examples=400, deadline=None)
@given(st.lists(RESULTS, min_size=1, max_size=3))
def test_any_result_is_read_or_breaks_the_stream(results: list[pb.StepResult]) -> None:
    hand = Hand()
    hand.admit([1, 2, 3, 4, 5], wants_logprobs=True, top_n_tokens=2, wants_prompt_logprobs=True)
    hand.admit([1, 2, 3])
    reason = "a result"
    try:
        for message in results:
            read = result_from_proto(pb.StepResult.FromString(message.SerializeToString()))
            hand.scheduler.on_step(read, 200.0)
    except (WireError, StreamBroken) as broken:
        reason = str(broken)
    assert 0 < len(reason) < 300
    hand.die()
    hand.begin()  # whatever was read, the next epoch takes all requests that have not ended


def test_unequal_arrays_are_a_broken_wire() -> None:
    with pytest.raises(WireError, match="slots"):
        result_from_proto(pb.StepResult(slots=b"\0\0\0\0"))
