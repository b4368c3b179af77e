"""What this machine has: memory, GPUs, the instructions of the processor. Nothing is started but `nvidia-smi`."""

import platform
import shutil
import subprocess
from pathlib import Path

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of /proc/cpuinfo; the last one on ARM
DRIVER_TIMEOUT_S = 20.0


def ram_bytes() -> int:
    """Return the lesser of the RAM and the container's limit."""
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    total = int(next(line for line in meminfo.splitlines() if line.startswith("MemTotal:")).split()[1]) * 1024
    limit = cgroup_limit_bytes()
    return total if limit is None else min(total, limit)


def cgroup_limit_bytes() -> int | None:
    """Return the container's limit of memory, or None without one."""
    for path in _CGROUP_LIMITS:
        if path.is_file():
            text = path.read_text(encoding="ascii").strip()
            return int(text) if text.isdigit() else None
    return None


def computes_in_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    words = {word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()}
    return bool(words & _BF16_FLAGS)


def gpu_bytes() -> list[int]:
    """Return the memory of each GPU that the driver shows. Empty without a driver."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    if shutil.which(command[0]) is None:
        return []
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(line) * 1024**2 for line in listing.stdout.split() if line.isdigit()]


def system_name() -> str:
    """Return the kernel and the processor's family."""
    return f"{platform.system()} {platform.release()}, {platform.machine()}"
