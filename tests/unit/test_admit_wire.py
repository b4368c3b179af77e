"""The shard reads each field of an Admit with the value that the router has sent."""

from array import array
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor
from textmill_proto.v1 import shard_pb2
from textmill_router.engine.wire import plan_to_proto
from textmill_router.media.media_item import MediaItem, MediaSpan, TensorPart
from textmill_router.request import (
    Beams,
    BlockId,
    EarlyStopping,
    GenerationParameters,
    GenerationRequest,
    Grammar,
    RequestId,
    SamplingParameters,
    Slot,
)
from textmill_router.scheduler.plan import Admit, Plan
from textmill_shard.server.wire import plan_from_wire
from textmill_shard.slots.plan import Admit as ShardAdmit

# Fields to which both rooms give another name than the message. Two fields of the message make up `logit_bias`.
NAMES = {"logprobs": "wants_logprobs", "long_rope": "is_long_rope"}
BIAS = {"logit_bias_ids": 0, "logit_bias_values": 1}
HOLDERS = {"request", "parameters", "sampling"}  # fields of the router's types that hold further fields
# Fields with which the router decides, and which the shard does not get.
ROUTER_ONLY = {
    "adapter_name",
    "dry_sequence_breakers",
    "arrival_s",
    "standing",
    "deadline_s",
    "cache_salt",
    "shares_prompt_of",
    "wants_prompt_logprobs",
}


async def no_tensors() -> tuple[TensorPart, ...]:
    return ()


# The first image has two spans, with the second image between them.
MEDIA = (
    MediaItem(
        digest=b"a" * 16,
        kind="qwen2_vl",
        num_rows=2,
        num_tensor_bytes=8,
        spans=(MediaSpan(b"a" * 16, 0, 1, 0, (1, 2, 4)), MediaSpan(b"a" * 16, 2, 1, 1, (1, 2, 4))),
        prepare=no_tensors,
    ),
    MediaItem(b"b" * 16, "qwen2_vl", 1, 8, (MediaSpan(b"b" * 16, 1, 1, 0),), no_tensors),
)


def unlike_default(value: Any, number: int, name: str, only: str) -> Any:
    """Return a value of the type of `value` that no other field has, exact in 32 bits.

    A boolean differs from its default only where `name` is `only`.
    """
    known = {
        "grammar": Grammar(f'start: "{number}"'),
        "logit_bias": ((number, -1.5), (number + 1, 2.5)),
        "prompt_logprobs_from": number,
        "copied_block_id": BlockId(number),
        "adapter_digest": bytes(15) + bytes([number % 256]),
        "media": MEDIA,
        "beams": Beams(number, number + 1, number + 0.5, EarlyStopping.NEVER, number + 2),
        "bad_sequences": ((number, number + 1), (number + 2,)),
    }
    if name in known:
        return known[name]
    if isinstance(value, bool):
        return value if name != only else not value
    if isinstance(value, int | float):
        return type(value)(number) if isinstance(value, int) else number + 0.25
    assert isinstance(value, tuple), f"say here which value {name} takes"
    return (number, number + 1)


def filled(kind: type[Any], start: int, only: str, **known: Any) -> Any:
    """Return an object of `kind` whose fields differ from their defaults, or are those of `known`.

    Of the booleans only the field `only` differs.
    """
    default = kind(**{field.name: known.get(field.name) for field in fields(kind) if field.name in known})
    values = {
        field.name: unlike_default(getattr(default, field.name), start + number, field.name, only)
        for number, field in enumerate(fields(kind))
        if field.name not in known and field.name not in ROUTER_ONLY
    }
    return kind(**known, **values)


def make_admit(only: str) -> Admit:
    """Return an admit in which no two fields have equal values, so that no two booleans are set at once."""
    request = filled(
        GenerationRequest,
        100,
        only,
        request_id=RequestId(2**40),
        prompt_ids=array("I", [1, 2**32 - 1, 5]),
        max_new_tokens=77,
        arrival_s=0.0,
        parameters=filled(GenerationParameters, 200, only, sampling=filled(SamplingParameters, 300, only)),
    )
    return filled(  # type: ignore[no-any-return]
        Admit,
        400,
        only,
        request=request,
        slot=Slot(3),
        output_ids=array("I", [258]),
        num_cached_tokens=2,
        block_ids=(BlockId(8), BlockId(9)),
    )


def router_value(value: Any, name: str) -> Any:
    """Return the field of that name in the router's admit, or in an object inside the admit."""
    if hasattr(value, name):
        return getattr(value, name)
    for holder in HOLDERS:
        if hasattr(value, holder) and (found := router_value(getattr(value, holder), name)) is not None:
            return found
    return None


def shard_value(admit: ShardAdmit, name: str) -> Any:
    return getattr(admit, name) if hasattr(admit, name) else getattr(admit.sampling, name)


def plain(value: Any) -> Any:
    """Return a value that can be compared across the rooms: numbers, lists of them, or the text of a grammar."""
    if isinstance(value, Grammar) or (is_dataclass(value) and hasattr(value, "text")):
        return value.text
    if is_dataclass(value):
        return [plain(() if (one := getattr(value, field.name)) is None else one) for field in fields(value)]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, array | np.ndarray | tuple | list):
        return [plain(one) for one in value]
    return value


def names_of(message: Descriptor) -> list[str]:
    return [field.name for field in message.fields]


ADMIT_FIELDS = [name for name in names_of(shard_pb2.Admit.DESCRIPTOR) if name != "sampling"]
SAMPLING_FIELDS = names_of(shard_pb2.Sampling.DESCRIPTOR)


@pytest.mark.parametrize("name", [*ADMIT_FIELDS, *SAMPLING_FIELDS])
def test_each_field_that_the_router_sends_is_read_by_the_shard(name: str) -> None:
    sent = make_admit(NAMES.get(name, name))
    message = plan_to_proto(Plan(1, admits=(sent,)), epoch=1).plan
    holder = message.admits[0] if name in ADMIT_FIELDS else message.admits[0].sampling
    default = type(holder)()
    assert getattr(holder, name) != getattr(default, name), f"engine/wire.py of the router does not send {name}"
    (read,) = plan_from_wire(message).admits
    if name in BIAS:
        wanted = [pair[BIAS[name]] for pair in sent.request.parameters.sampling.logit_bias]
        found = [pair[BIAS[name]] for pair in read.sampling.logit_bias]
    elif name == "media":
        wanted, found = sent.request.media_spans, read.media
    else:
        wanted = router_value(sent, NAMES.get(name, name))
        found = shard_value(read, NAMES.get(name, name))
    assert wanted is not None, f"no field of the router is called {name}"
    assert plain(found) == plain(wanted)


def test_each_field_of_the_router_has_one_in_the_message() -> None:
    own = {field.name for kind in (Admit, GenerationRequest, GenerationParameters) for field in fields(kind)}
    sent = {NAMES.get(name, name) for name in ADMIT_FIELDS}
    assert own - HOLDERS - ROUTER_ONLY == sent
    sampling = {field.name for field in fields(SamplingParameters)}
    assert sampling == {"logit_bias" if name in BIAS else name for name in SAMPLING_FIELDS}
