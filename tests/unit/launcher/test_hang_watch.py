"""When a living shard counts as hung."""

import os
import signal
import subprocess
import sys

from textmill_launcher.hang_watch import HangJudge, Sign, is_process_busy, is_process_stopped
from textmill_proto.v1.shard_pb2 import HealthReport

from tests.fakes.processes import wait_until

STEP_S = 0.25
LIMIT_S = 20.0


def judged(*signs: Sign, must_answer: bool = True, step_s: float = STEP_S) -> list[str | None]:
    """Return the verdicts of looks at these times: 0, `step_s`, 2 x `step_s` and so on."""
    judge = HangJudge(0.0)
    return [judge.judge(sign, (number + 1) * step_s, must_answer=must_answer) for number, sign in enumerate(signs)]


def report(*, step: int, overdue_ms: int = 0, limit_ms: int = 1500, is_busy: bool = False) -> Sign:
    health = HealthReport(last_step=step, overdue_ms=overdue_ms, progress_limit_ms=limit_ms)
    return Sign(is_busy=is_busy, report=health)


SILENT = Sign()
STOPPED = Sign(is_stopped=True)


def test_stopped_process_is_hung_at_the_second_look_also_while_it_loads() -> None:
    for must_answer in (True, False):
        first, second = judged(STOPPED, STOPPED, must_answer=must_answer)
        assert first is None
        assert second is not None
        assert "SIGSTOP" in second


def test_process_that_goes_on_between_two_looks_is_not_hung() -> None:
    assert judged(STOPPED, report(step=3), STOPPED) == [None, None, None]


def test_late_step_is_hung_when_two_looks_find_the_same_step() -> None:
    verdicts = judged(report(step=7), report(step=7, overdue_ms=1), report(step=7, overdue_ms=251))
    assert verdicts[:2] == [None, None]
    assert verdicts[2] is not None
    assert "within 1.5 s" in verdicts[2]


def test_late_steps_that_end_are_slow_and_not_hung() -> None:
    assert judged(*(report(step=step, overdue_ms=9) for step in range(7, 12))) == [None] * 5


def test_late_step_that_computes_is_hung_much_later() -> None:
    # 10 s and three times the limit of 1.5 s.
    verdicts = judged(*(report(step=7, overdue_ms=ms, is_busy=True) for ms in (300, 14_500, 14_501, 14_751)))
    assert verdicts[:3] == [None] * 3
    assert verdicts[3] is not None


def test_silence_counts_from_the_last_answer_and_allows_for_the_largest_step() -> None:
    # The shard answers at 0.25 s. With 1 s of slack and a limit of 1.5 s the silence may last until 2.75 s.
    verdicts = judged(report(step=1), *[SILENT] * 11)
    assert verdicts[:11] == [None] * 11
    assert verdicts[11] is not None
    assert "has not answered Health for 2.8 s" in verdicts[11]


def test_silence_while_loading_says_nothing() -> None:
    assert judged(*[SILENT] * 100, must_answer=False) == [None] * 100


def test_look_that_comes_late_begins_again_because_the_launcher_did_not_run() -> None:
    judge = HangJudge(0.0)
    assert judge.judge(report(step=1), 0.25, must_answer=True) is None
    assert judge.judge(SILENT, 60.0, must_answer=True) is None
    assert judge.judge(report(step=1, overdue_ms=59_000), 60.25, must_answer=True) is None
    assert judge.judge(report(step=2), 60.5, must_answer=True) is None


def test_states_of_processes_are_read_from_the_system() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        wait_until(lambda: not is_process_busy(sleeper.pid), LIMIT_S, "the process sleeps")
        assert not is_process_stopped(sleeper.pid)
        sleeper.send_signal(signal.SIGSTOP)
        wait_until(lambda: is_process_stopped(sleeper.pid), LIMIT_S, "the process is stopped")
    finally:
        sleeper.kill()
        sleeper.wait(LIMIT_S)
    assert is_process_busy(os.getpid())
    assert not is_process_stopped(sleeper.pid)  # gone
