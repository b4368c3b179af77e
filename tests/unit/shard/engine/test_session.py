"""The queue between the step loop and the writer of a stream."""

from textmill_shard.engine.session import EndReason, Session, StreamEnd
from textmill_shard.slots.plan import StepResult


def test_items_come_in_order_and_the_end_comes_last() -> None:
    session = Session(1)
    first, second = StepResult(step=1, plan_applied=0), StepResult(step=2, plan_applied=0)
    session.send(first)
    session.send(second)
    session.finish(EndReason.STOPPING, "over")
    assert [session.next_item(0.0) for _ in range(4)] == [first, second, StreamEnd(EndReason.STOPPING, "over"), None]


def test_a_writer_that_is_late_for_its_heartbeat_waits_no_longer() -> None:
    assert Session(1).next_item(-0.5) is None


def test_silence_counts_from_what_was_heard_last() -> None:
    now_s = 10.0
    session = Session(1, clock=lambda: now_s)
    now_s = 13.0
    assert session.silence_s() == 3.0
    session.hear()
    now_s = 14.0
    assert session.silence_s() == 1.0
