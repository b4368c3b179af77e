"""The loop computes batches in order, refuses a third one, and tells the status how far it is."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from textmill_shard.engine.status import ShardStatus
from textmill_shard.tasks.row_loop import LoopBusy, LoopEnded, RowLoop
from textmill_shard.tasks.rows import Answer, FailureCode, HeadName, Row, RowBatch, RowFailure

WAIT_S = 10.0


class HeldRunner:
    """Computes when the test lets it, and notes the numbers of tokens of the batches."""

    num_memory_faults = 0

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.computed: list[int] = []
        self.error: Exception | None = None

    def run(self, head: HeadName, rows: Sequence[Row], *, on_part: Callable[[int], None]) -> list[Answer | RowFailure]:
        on_part(rows[0].num_tokens)
        self.computed.append(rows[0].num_tokens)
        self.began.release()
        assert self.may_end.acquire(timeout=WAIT_S)
        if self.error is not None:
            raise self.error
        return [np.zeros(1, np.float32) for _ in rows]


def batch(number: int) -> RowBatch:
    return RowBatch(number=number, head=HeadName.LABELS, rows=[Row(np.ones(number, np.int64), None)])


@contextmanager
def running(loop: RowLoop, runner: HeldRunner) -> Iterator[list[BaseException]]:
    errors: list[BaseException] = []

    def body() -> None:
        try:
            loop.run()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield errors
    finally:
        loop.stop()
        for _ in range(9):
            runner.may_end.release()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def make(status: ShardStatus | None = None) -> tuple[RowLoop, HeldRunner]:
    runner = HeldRunner()
    return RowLoop(runner, status or ShardStatus(), max_batch_tokens=10), runner  # type: ignore[arg-type]


def test_rule_27_one_batch_runs_and_one_waits() -> None:
    loop, runner = make()
    with running(loop, runner):
        first = loop.submit(batch(1))
        assert runner.began.acquire(timeout=WAIT_S)
        second = loop.submit(batch(2))
        with pytest.raises(LoopBusy):
            loop.submit(batch(3))
        runner.may_end.release()
        assert first.is_done.wait(WAIT_S)
        assert first.answers is not None
        assert first.answers.number == 1
        runner.may_end.release()
        assert second.is_done.wait(WAIT_S)
    assert runner.computed == [1, 2]


@dataclass(frozen=True)
class ReadText:
    """A row of strings, whose tokens the router does not know."""

    num_own_tokens: int
    num_tokens: int = 1


def test_tokens_of_the_shards_own_tokenizer_are_told_by_row() -> None:
    loop, runner = make()
    with running(loop, runner):
        broken = RowFailure(FailureCode.BAD_MEDIA, "no letter")
        told, plain = (
            loop.submit(batch(1), [ReadText(7), broken, ReadText(2)]),
            loop.submit(batch(2)),
        )
        runner.may_end.release()
        runner.may_end.release()
        assert told.is_done.wait(WAIT_S)
        assert plain.is_done.wait(WAIT_S)
    assert told.answers is not None
    assert plain.answers is not None
    assert (list(told.answers.num_tokens), list(plain.answers.num_tokens)) == ([7, 0, 2], [])


def test_rule_27_a_batch_that_is_cancelled_before_its_turn_is_never_computed() -> None:
    loop, runner = make()
    with running(loop, runner):
        first = loop.submit(batch(1))
        assert runner.began.acquire(timeout=WAIT_S)
        second = loop.submit(batch(2))
        second.is_cancelled = True
        third = loop.submit(batch(3))  # its place is free
        assert second.is_done.is_set()
        assert second.answers is None
        runner.may_end.release()
        runner.may_end.release()
        assert third.is_done.wait(WAIT_S)
        assert first.is_done.is_set()
    assert runner.computed == [1, 3]


def test_a_fault_of_the_device_ends_the_loop_and_its_batches() -> None:
    loop, runner = make()
    with running(loop, runner) as errors:
        runner.error = RuntimeError("the device is lost")
        first = loop.submit(batch(1))
        assert runner.began.acquire(timeout=WAIT_S)
        second = loop.submit(batch(2))
        runner.may_end.release()
        assert second.is_done.wait(WAIT_S)
        assert first.answers is None
        assert second.answers is None
        with pytest.raises(LoopEnded):
            loop.submit(batch(3))
    assert [str(error) for error in errors] == ["the device is lost"]


def test_a_batch_that_takes_longer_than_the_limit_is_late() -> None:
    now_s = 0.0
    status = ShardStatus(clock=lambda: now_s)
    status.progress.measure_warm_up(0.1)  # the limit is 1 s and ten times 0.1 s
    loop, runner = make(status)
    with running(loop, runner):
        loop.submit(batch(5))
        assert runner.began.acquire(timeout=WAIT_S)
        now_s = 1.5
        assert (status.overdue_ms(), status.snapshot.is_busy) == (0, True)
        now_s = 2.5
        assert status.overdue_ms() == 500


def test_a_row_that_is_longer_than_a_batch_gets_the_square_of_the_time() -> None:
    now_s = 0.0
    status = ShardStatus(clock=lambda: now_s)
    status.progress.measure_warm_up(0.1)
    loop, runner = make(status)
    with running(loop, runner):
        loop.submit(batch(30))  # three times the largest batch, so nine times 2 s
        assert runner.began.acquire(timeout=WAIT_S)
        now_s = 17.5
        assert status.overdue_ms() == 0
        now_s = 18.5
        assert status.overdue_ms() == 500


def test_the_status_counts_batches() -> None:
    status = ShardStatus()
    loop, runner = make(status)
    with running(loop, runner):
        for number in (1, 2):
            runner.may_end.release()
            assert loop.submit(batch(number)).is_done.wait(WAIT_S)
    assert (status.snapshot.last_step, status.snapshot.is_busy) == (2, False)
