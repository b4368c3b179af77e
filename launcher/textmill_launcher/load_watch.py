"""Finds shards that load and do nothing, whose first load has no other limit, because a large model may take long."""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

from textmill_launcher.child_process import ChildProcess

LOOK_INTERVAL_S = 5.0
IDLE_LOAD_S = 120.0
# Of one processor, by all ranks together. To answer Health while the model loads takes a tenth of that.
LEAST_CPU_SHARE = 0.05
_WAITS_FOR_DISK = "D"


class LoadJudge:
    """Judges the signs of a group that loads, in order. Pure: times are handed in, in seconds of one clock."""

    def __init__(self, now_s: float, cpu_s: float) -> None:
        self._looked_s = self._worked_s = now_s
        self._cpu_s = cpu_s

    def judge(self, now_s: float, *, cpu_s: float, waits_for_disk: bool) -> str | None:
        """Return why the group counts as hung, or None. `cpu_s` is the processor time of all ranks so far.

        A look that comes late counts as work, because the launcher itself did not run.
        """
        passed_s = now_s - self._looked_s
        has_worked = cpu_s - self._cpu_s >= LEAST_CPU_SHARE * passed_s
        if has_worked or waits_for_disk or passed_s > 3 * LOOK_INTERVAL_S:
            self._worked_s = now_s
        self._looked_s, self._cpu_s = now_s, cpu_s
        if now_s - self._worked_s > IDLE_LOAD_S:
            return f"has loaded for {now_s - self._worked_s:.0f} s without computing or reading"
        return None


async def wait_for_idle_load(shards: Sequence[ChildProcess]) -> str:
    """Return why the group hangs while it loads, once it does. Waits for ever on systems without /proc."""
    judge = LoadJudge(time.monotonic(), sum(cpu_seconds(shard.pid) for shard in shards))
    while True:
        await asyncio.sleep(LOOK_INTERVAL_S)
        reason = judge.judge(
            time.monotonic(),
            cpu_s=sum(cpu_seconds(shard.pid) for shard in shards),
            waits_for_disk=not _has_proc() or any(_has_thread_at_disk(shard.pid) for shard in shards),
        )
        if reason is not None:
            return reason


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, in seconds; 0 for a process that is gone."""
    fields = _fields(Path(f"/proc/{pid}/stat"))
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")  # utime and stime, see proc_pid_stat(5)


def _has_proc() -> bool:
    return Path("/proc/self/stat").exists()


def _has_thread_at_disk(pid: int) -> bool:
    return any(_fields(stat)[:1] == [_WAITS_FOR_DISK] for stat in Path(f"/proc/{pid}/task").glob("*/stat"))


def _fields(stat: Path) -> list[str]:
    """Return the fields behind the name of a process or thread, none for one that is gone."""
    try:
        return stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
