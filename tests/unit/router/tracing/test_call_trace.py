"""The phases of a call, from the times of its requests."""

from dataclasses import dataclass

import pytest
from textmill_router.request import RequestTimes
from textmill_router.tracing.call_trace import CallTrace, phases_of


@dataclass(frozen=True)
class Timed:
    times: RequestTimes


def shown(validated_s: float | None, *times: RequestTimes) -> list[tuple[str, float, float]]:
    trace = CallTrace("0" * 31 + "1", {}, validated_s=validated_s, requests=[Timed(one) for one in times])
    return [(phase.name, phase.start_s, phase.end_s) for phase in phases_of(trace, 1.0)]


WHOLE = [("validate", 1.0, 2.0), ("queue", 2.5, 3.0), ("prefill", 3.0, 5.0), ("decode", 5.0, 9.0)]


@pytest.mark.parametrize(
    ("times", "count"),
    [
        ([RequestTimes(2.5, 3.0, 5.0, 9.0)], 4),
        ([RequestTimes(2.5, 3.0, 5.0)], 3),  # the answer was cut off
        ([RequestTimes(2.5, 3.0)], 2),
        ([RequestTimes(2.5)], 1),
        ([], 1),
    ],
)
def test_call_shows_the_phases_that_it_completed(times: list[RequestTimes], count: int) -> None:
    assert shown(2.0, *times) == WHOLE[:count]


def test_call_that_was_refused_has_no_phase() -> None:
    assert shown(None) == []


def test_several_requests_share_one_row_of_phases() -> None:
    late = RequestTimes(2.6, 4.0, 6.0, 9.0)
    assert shown(2.0, RequestTimes(2.5, 3.0, 5.0, 7.0), late) == WHOLE
    assert shown(2.0, RequestTimes(2.5, 3.0, 5.0, 7.0), RequestTimes(2.6)) == WHOLE[:3]
