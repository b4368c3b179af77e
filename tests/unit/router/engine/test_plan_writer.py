"""Plans with requests that no message can hold, and the errors that take the place of their slots."""

from array import array
from dataclasses import replace

import pytest
from textmill_proto.v1 import shard_pb2
from textmill_router.engine.plan_writer import PlanWriter
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
from textmill_router.scheduler.plan import Admit, Budget, Drop, Extend, Plan, SlotError

from tests.fakes.scheduler_hand import make_result

TOO_LARGE = GenerationParameters(sampling=SamplingParameters(no_repeat_ngram_size=1 << 32))
FOREIGN_ERROR = SlotError(Slot(7), RequestId(70), FailureCode.NOT_FINITE, "of the shard")


def admit(number: int, parameters: GenerationParameters | None = None, **changes: object) -> Admit:
    """Return the admit of request 10 * number in the slot of that number."""
    request = GenerationRequest(RequestId(10 * number), array("I", [5]), 4, 0.0, parameters or GenerationParameters())
    request = replace(request, **changes)  # type: ignore[arg-type]
    return Admit(request, Slot(number), array("I"), 0, (BlockId(number),))


def drop(number: int) -> Drop:
    return Drop(Slot(number), RequestId(10 * number))


def sent(message: shard_pb2.ToShard) -> shard_pb2.ToShard:
    return shard_pb2.ToShard.FromString(message.SerializeToString())


def test_an_admit_that_cannot_be_written_is_left_out_and_the_rest_of_its_plan_is_sent() -> None:
    plan = Plan(4, (drop(9),), (Extend(Slot(8), RequestId(80), ()),), (admit(1), admit(2, TOO_LARGE)), Budget(3, 2, 1))
    message = sent(PlanWriter(6).write(plan))
    assert (message.epoch, message.plan.number) == (6, 4)
    assert [one.slot for one in message.plan.drops] == [9]
    assert [one.slot for one in message.plan.extends] == [8]
    assert [one.request_id for one in message.plan.admits] == [10]
    assert message.plan.budget.max_step_tokens == 3


@pytest.mark.parametrize(
    "bad",
    [
        admit(2, TOO_LARGE),
        admit(2, GenerationParameters(sampling=SamplingParameters(allowed_ids=(1 << 32,)))),
        admit(2, GenerationParameters(sampling=SamplingParameters(top_k=-1))),
        admit(2, GenerationParameters(grammar=Grammar("a \ud800"))),
        admit(2, max_new_tokens=1 << 40),
    ],
)
def test_the_request_fails_once_with_the_result_that_acknowledges_its_plan(bad: Admit) -> None:
    writer = PlanWriter(1)
    writer.write(Plan(4, admits=(bad,)))
    early = make_result(applied=3, rows=[(1, 5, 0)])
    assert writer.add_failures(early) == early
    result = replace(make_result(applied=5, rows=[(1, 5, 0)]), errors=(FOREIGN_ERROR,))
    of_shard, of_writer = writer.add_failures(result).errors
    assert of_shard == FOREIGN_ERROR
    assert (of_writer.slot, of_writer.request_id, of_writer.code) == (2, 20, FailureCode.INTERNAL)
    assert of_writer.message.startswith("the request cannot be written to the shard: ")
    assert writer.add_failures(result) == result


def test_a_request_that_is_dropped_before_its_plan_is_acknowledged_has_no_error() -> None:
    writer = PlanWriter(1)
    writer.write(Plan(4, admits=(admit(1, TOO_LARGE), admit(2, TOO_LARGE))))
    writer.write(Plan(5, drops=(drop(1),), admits=(admit(3, TOO_LARGE),)))
    errors = writer.add_failures(make_result(applied=5, rows=[])).errors
    assert [error.request_id for error in errors] == [20, 30]


def test_a_plan_that_cannot_be_written_without_admits_is_an_error() -> None:
    with pytest.raises(ValueError, match="range"):
        PlanWriter(1).write(Plan(1 << 64, admits=(admit(1),)))
