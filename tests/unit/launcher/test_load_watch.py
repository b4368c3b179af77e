"""A group that loads may take as long as it works or reads, and is hung when it does neither."""

import subprocess
import sys
import time

from textmill_launcher.load_watch import IDLE_LOAD_S, LOOK_INTERVAL_S, LoadJudge, cpu_seconds, wanted_seconds

LIMIT_S = 20.0


def verdicts(*signs: tuple[float, bool], num_looks: int) -> list[str | None]:
    """Return the verdict of each look, where the signs (share of a processor, reads) come again and again."""
    judge, now_s, cpu_s = LoadJudge(0.0, 3.0), 0.0, 3.0
    found = []
    for look in range(num_looks):
        share, reads = signs[look % len(signs)]
        now_s += LOOK_INTERVAL_S
        cpu_s += share * LOOK_INTERVAL_S
        found.append(judge.judge(now_s, cpu_s=cpu_s, waits_for_disk=reads))
    return found


def test_a_group_that_computes_or_reads_may_load_for_hours() -> None:
    assert not any(verdicts((0.2, False), num_looks=3000))
    assert not any(verdicts((0.0, True), num_looks=3000))
    assert not any(verdicts((0.9, False), *[(0.0, False)] * 20, num_looks=3000))


def test_a_group_that_only_answers_health_is_hung() -> None:
    num_looks = int(IDLE_LOAD_S / LOOK_INTERVAL_S)
    found = verdicts((0.01, False), num_looks=num_looks + 1)
    assert not any(found[:num_looks])
    assert "without computing or reading" in str(found[-1])


def test_a_group_that_waits_for_a_processor_of_a_crowded_machine_is_not_hung() -> None:
    def last_verdict(wanted_share: float) -> str | None:
        judge, found = LoadJudge(0.0, 0.0), None
        for look in range(1, 100):
            now_s = look * LOOK_INTERVAL_S
            found = judge.judge(now_s, cpu_s=0.0, waits_for_disk=False, wanted_s={7: wanted_share * now_s, 8: 0.0})
        return found

    assert last_verdict(0.95) is None
    assert "without computing or reading" in str(last_verdict(0.5))


def test_wanted_time_is_that_of_a_thread_that_computes_or_waits() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        end_s = time.monotonic() + LIMIT_S
        while max(wanted_seconds(busy.pid).values(), default=0.0) < 0.1:
            assert time.monotonic() < end_s
        busy.kill()
    assert wanted_seconds(busy.pid) == {}


def test_a_machine_that_slept_makes_no_group_hung() -> None:
    judge = LoadJudge(0.0, 0.0)
    assert judge.judge(1000.0, cpu_s=0.0, waits_for_disk=False) is None
    assert judge.judge(1000.0 + IDLE_LOAD_S, cpu_s=0.0, waits_for_disk=False) is None


def test_processor_time_is_that_of_the_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        end_s = time.monotonic() + LIMIT_S
        while cpu_seconds(busy.pid) < 0.1:
            assert time.monotonic() < end_s
        busy.kill()
    assert cpu_seconds(busy.pid) == 0.0
