"""Finds shards that load and do nothing, whose first load has no other limit, because a large model may take long."""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from textmill_launcher.child_process import ChildProcess

LOOK_INTERVAL_S = 5.0
IDLE_LOAD_S = 120.0
# Of one processor, by all ranks together. To answer Health while the model loads takes a tenth of that.
LEAST_CPU_SHARE = 0.05
# Of the time in which one thread computes or waits for a processor that others have. An answer to Health waits too,
# for a part of the time.
LEAST_WANTED_SHARE = 0.8
_WAITS_FOR_DISK = "D"
NO_THREADS: Mapping[int, float] = {}


class LoadJudge:
    """Judges the signs of a group that loads, in order. Pure: times are handed in, in seconds of one clock."""

    def __init__(self, now_s: float, cpu_s: float) -> None:
        self._looked_s = self._worked_s = now_s
        self._cpu_s = cpu_s
        self._wanted_s: Mapping[int, float] = {}

    def judge(
        self, now_s: float, *, cpu_s: float, waits_for_disk: bool, wanted_s: Mapping[int, float] = NO_THREADS
    ) -> str | None:
        """Return why the group counts as hung, or None. `cpu_s` is the processor time of all ranks so far.

        `wanted_s` has the time in which each thread has computed or waited for a processor so far. A look that comes
        late counts as work, because the launcher itself did not run.
        """
        passed_s = now_s - self._looked_s
        has_worked = cpu_s - self._cpu_s >= LEAST_CPU_SHARE * passed_s or any(
            wanted - self._wanted_s.get(thread, wanted) >= LEAST_WANTED_SHARE * passed_s
            for thread, wanted in wanted_s.items()
        )
        self._wanted_s = wanted_s
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
            wanted_s={thread: wanted for shard in shards for thread, wanted in wanted_seconds(shard.pid).items()},
            waits_for_disk=not _has_proc() or any(_has_thread_at_disk(shard.pid) for shard in shards),
        )
        if reason is not None:
            return reason


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, in seconds; 0 for a process that is gone."""
    fields = _fields(Path(f"/proc/{pid}/stat"))
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")  # utime and stime, see proc_pid_stat(5)


def wanted_seconds(pid: int) -> dict[int, float]:
    """Return the seconds in which each thread has computed or waited for a processor. Empty where nobody counts."""
    found = {}
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            computed_ns, waited_ns, _ = map(int, file.read_text(encoding="ascii").split())
        except (OSError, ValueError):
            continue
        found[int(file.parent.name)] = (computed_ns + waited_ns) / 1e9
    return found


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
