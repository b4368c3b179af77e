"""How many cores this process may use: those of its affinity, or fewer where the container has a quota of CPU time."""

import os
from pathlib import Path

# A quota is microseconds of CPU time per period, in files of cgroup v2 and v1.
_FILES_V2, _FILES_V1 = ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def usable_cores(root: Path = Path("/"), affinity: int | None = None) -> int:
    """Return the number of cores, at least 1. A quota of two and a half cores counts as two.

    `root` holds `proc` and `sys`; `affinity` is the number of cores without a quota (None: ask the system).
    """
    cores = affinity if affinity is not None else len(os.sched_getaffinity(0))
    quotas = [quota for folder, files in _folders(root) if (quota := _read_quota(folder, files)) is not None]
    return max(1, min([cores, *(int(quota) for quota in quotas)]))


def _folders(root: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """Return where quotas may stand: in the group of this process and in all groups around it."""
    mount = root / "sys/fs/cgroup"
    found: list[tuple[Path, tuple[str, ...]]] = []
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = ["0::/", "1:cpu:/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may be the host's, which is not there; then the mount is the container's own group.
        inner = Path(path.strip("/"))
        tops = (
            [mount / "cpu", mount / "cpu,cpuacct", mount / "cpuacct,cpu"] if controllers else [mount, mount / "unified"]
        )
        files = _FILES_V1 if controllers else _FILES_V2
        found += [(top / part, files) for top in tops for part in (inner, *inner.parents)]
    return found


def _read_quota(folder: Path, files: tuple[str, ...]) -> float | None:
    """Return the quota in cores, None where there is none."""
    try:
        words = [word for name in files for word in (folder / name).read_text(encoding="ascii").split()]
        quota, period = int(words[0]), int(words[1])
    except (OSError, ValueError, IndexError):
        return None  # no file, or `max`
    return quota / period if quota > 0 and period > 0 else None
