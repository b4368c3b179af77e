"""Each field of a message is set by the room that sends the message and read by the room that receives the message.

The tests walk the descriptors. A field that is new in shard.proto fails here until both rooms know the field, or until
the table `UNREAD` says that no room reads the field. `test_wire.py` of each room checks the meaning of a field.
"""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from textmill_proto import PROTOCOL_VERSION
from textmill_proto.v1 import shard_pb2 as pb
from textmill_router.engine.shard_facts import ShardFacts as RouterFacts
from textmill_router.engine.shard_facts import facts_from_proto, health_from_proto
from textmill_router.engine.wire import WireError, plan_to_proto, rejected_from_proto, result_from_proto
from textmill_router.request import BlockId, RequestId, Slot
from textmill_router.scheduler import plan as router_plan
from textmill_shard.engine.status import ShardStatus
from textmill_shard.server.server import ShardService
from textmill_shard.server.wire import (
    facts_to_wire,
    heartbeat_to_wire,
    hello_to_wire,
    plan_from_wire,
    rejection_to_wire,
    result_to_wire,
)
from textmill_shard.slots.plan import (
    FoundSequences,
    Heartbeat,
    PlanRejection,
    ShardFacts,
    SlotError,
    SlotErrorCode,
    SlotPromptLogprobs,
    StepResult,
    TopTokens,
)

# Fields that the receiving room does not read, because the shard tells them to people, in `Info`, `Health` and logs.
UNREAD = {
    "ShardInfo": {"rank", "layout", "weight_bytes", "kv_bytes"},
    # The launcher reads the last two (`hang_watch.py` of that room).
    "HealthReport": {"last_step", "last_step_age_ms", "is_busy", "progress_limit_ms", "overdue_ms"},
}
# `test_admit_wire.py` walks the fields of an admitted request.
WALKED_ELSEWHERE = {"Plan.admits"}

FACTS = ShardFacts(
    model_id="org/m",
    model_sha="abc",
    model_type="llama",
    dtype="float32",
    device="cpu",
    rank=3,
    world_size=4,
    block_size=16,
    num_blocks=100,
    num_slots=8,
    max_step_tokens=512,
    vocab_size=50,
    eos_token_ids=(2, 5),
    max_model_tokens=2048,
    layout="flat",
    features=("prefix_cache", "grammar"),
    tokenizer_digest="ff",
    weight_bytes=2**40,
    kv_bytes=2**35,
    rope_border=4096,
    decoder_prompt_ids=(2, 7),
    max_encoder_tokens=1024,
    adapter_bytes=2**33,
    max_adapter_rank=64,
    adapter_digests=(b"\x01" * 16, b"\x02" * 16),
    media_kinds=("llava", "gemma3"),
    media_cache_bytes=2**28,
    media_row_bytes=7168,
    uncut_spans=True,
    uncut_prompts=True,
    kv_dtype="fp8_e4m3fn",
)


def ids(*values: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    return np.array(values, dtype=np.float32)


RESULT = StepResult(
    step=5,
    plan_applied=3,
    slots=ids(4, 1),
    tokens=ids(70000, 2),
    flags=ids(1, 5),
    prefill_slots=ids(2),
    prefill_computed=ids(300),
    starved_slots=ids(6),
    errors=(SlotError(7, 70, SlotErrorCode.NOT_FINITE, "NaN"),),
    logprobs=floats(-0.5, -0.25),
    top_tokens=(TopTokens(row=1, ids=ids(9, 8), logprobs=floats(-1.0, -2.0)),),
    prompt_logprobs=(
        SlotPromptLogprobs(
            slot=2,
            request_id=20,
            start=1,
            logprobs=floats(-3.0),
            top_counts=ids(2),
            top_ids=ids(1, 2),
            top_logprobs=floats(-1.5, -2.5),
        ),
    ),
    found=(FoundSequences(slot=4, sequences=(ids(70000, 8), ids(9)), scores=floats(-0.5, -1.5)),),
    step_ns=10**9,
    device_ns=7,
)
PLAN = router_plan.Plan(
    number=9,
    drops=(router_plan.Drop(Slot(1), RequestId(10)),),
    extends=(router_plan.Extend(Slot(2), RequestId(11), (BlockId(258),)),),
    budget=router_plan.Budget(max_step_tokens=100, max_prefill_tokens=80, max_chunk_tokens=40),
)


def failed_report() -> pb.HealthReport:
    """Return the report of a shard that failed while a step ran, in which no field has its default."""
    now_s = 1.0
    status = ShardStatus(clock=lambda: now_s)
    status.progress.measure_warm_up(0.25)
    status.report_loading("weights", 0.5)
    status.report_failure("no memory")
    status.finish_step(step=4, plan_applied=2)
    status.begin_step()
    now_s = 300.0
    return ShardService(status).Health(pb.HealthRequest(), context=None)  # type: ignore[arg-type]


SENT: dict[str, Message] = {
    "ShardInfo": hello_to_wire(1, FACTS).hello.info,
    "HealthReport": failed_report(),
    "StepResult": result_to_wire(1, RESULT).result,
    "Heartbeat": heartbeat_to_wire(
        1, Heartbeat(4, 20, plan_applied=2, overdue_ms=5, num_memory_faults=1, media_bytes=9, num_media_encodes=3)
    ).heartbeat,
    "PlanRejected": rejection_to_wire(1, PlanRejection(plan=6, slot=2, field="admits.slot", message="taken")).rejected,
    "Plan": plan_to_proto(PLAN, 1).plan,
}
READERS: dict[str, Callable[[Any], object]] = {
    "ShardInfo": facts_from_proto,
    "HealthReport": health_from_proto,
    "StepResult": result_from_proto,
    "PlanRejected": rejected_from_proto,
    "Plan": lambda plan: repr(plan_from_wire(plan)),  # numpy arrays have no equality that gives one answer
}


def walk(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Yield each field of the message and of the messages inside, with the message that holds the field."""
    for field in message.DESCRIPTOR.fields:
        if f"{message.DESCRIPTOR.name}.{field.name}" in WALKED_ELSEWHERE:
            continue
        yield message, field
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            value = getattr(message, field.name)
            for inner in value if field.is_repeated else [value]:
                yield from walk(inner)


def name_of(message: Message, field: FieldDescriptor) -> str:
    return f"{message.DESCRIPTOR.name}.{field.name}"


@pytest.mark.parametrize("name", SENT)
def test_the_sender_sets_every_field(name: str) -> None:
    unset = [
        name_of(holder, field)
        for holder, field in walk(SENT[name])
        if field.name not in {found.name for found, _ in holder.ListFields()}
    ]
    assert unset == []


@pytest.mark.parametrize("name", READERS)
def test_the_receiver_reads_every_field(name: str) -> None:
    """A message that lacks one field gives another object, or is refused."""
    read, whole = READERS[name], SENT[name]
    ignored = set()
    for number, (holder, field) in enumerate(walk(whole)):
        lacking = type(whole).FromString(whole.SerializeToString())
        place, _ = list(walk(lacking))[number]
        place.ClearField(field.name)
        try:
            if read(lacking) == read(whole):
                ignored.add(field.name)
        except WireError:
            continue
        assert holder.DESCRIPTOR.name == name or field.name not in ignored, name_of(holder, field)
    assert ignored == UNREAD.get(name, set())


def test_every_message_of_the_stream_is_walked() -> None:
    """`Hello` holds only `ShardInfo`, and `shard_client.py` of the router reads four fields of a heartbeat."""
    inside = {
        field.message_type.name
        for message in (pb.ToShard, pb.FromShard)
        for field in message.DESCRIPTOR.fields
        if field.message_type is not None
    }
    assert inside == (set(SENT) - {"ShardInfo", "HealthReport"}) | {"Hello"}
    assert [field.name for field in pb.Hello.DESCRIPTOR.fields] == ["info"]
    assert set(SENT) - set(READERS) == {"Heartbeat"}


def test_the_router_has_the_facts_that_the_shard_has() -> None:
    found = facts_from_proto(facts_to_wire(FACTS))
    shared = {field.name for field in fields(RouterFacts)} - {"protocol_version"}
    assert {name: getattr(found, name) for name in shared} == {name: getattr(FACTS, name) for name in shared}
    assert found.protocol_version == PROTOCOL_VERSION


def test_the_router_has_the_numbers_of_a_step() -> None:
    found = result_from_proto(result_to_wire(1, RESULT).result)
    for name in ("slots", "tokens", "prefill_slots", "prefill_computed", "starved_slots", "logprobs"):
        assert getattr(found, name) == array(getattr(found, name).typecode, getattr(RESULT, name).tolist()), name
    assert list(found.flags) == RESULT.flags.tolist()
    assert (found.step, found.plan_applied) == (RESULT.step, RESULT.plan_applied)
    assert (found.step_s, found.device_s) == pytest.approx((RESULT.step_ns / 1e9, RESULT.device_ns / 1e9))
