"""CPU time of the whole machine, of a process, of its threads and of its descendants. Works on Linux only."""

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def busy_s() -> float:
    """Return the CPU seconds that all processes have used since the machine started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields[:7])
    return (user + nice + system + irq + softirq) / _TICKS_PER_S


def process_s(pid: int) -> float:
    """Return the CPU seconds of all threads of one process, without the process's children."""
    fields = _stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def threads_s(pid: int) -> dict[int, float]:
    """Return the CPU seconds of each living thread of a process, by thread id.

    These numbers are exact to the microsecond; the other functions of this file count in ticks.
    """
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) * 1e-9
        except OSError:
            continue  # the thread ended meanwhile
    return found


def tree_s(pid: int) -> float:
    """Return the CPU seconds of a process and of its descendants that still live."""
    total_s = 0.0
    for member in family(pid):
        try:
            total_s += process_s(member)
        except OSError:
            continue
    return total_s


def family(pid: int) -> set[int]:
    """Return the ids of a process and of its descendants that still live."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(_stat_fields(int(entry.name))[1])
            except OSError:
                continue  # the process ended meanwhile
    found = {pid}
    while True:
        children = {child for child, parent in parents.items() if parent in found} - found
        if not children:
            return found
        found |= children


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from field 3 on, because the name before may have spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
