"""How much memory a device or this machine has, how much of the memory is free, and how much a call takes."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from textmill_shard.errors import ModelError

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_CGROUP_USED = (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))


def total_memory_bytes(device: torch.device) -> int:
    """Return the memory of a GPU, or on a CPU the lesser of the RAM and the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    ram = _meminfo("MemTotal")
    limit = _first_number(_CGROUP_LIMITS)
    return ram if limit is None else min(ram, limit)


def free_memory_bytes(device: torch.device) -> int:
    """Return the bytes that this process could take now of the memory that `total_memory_bytes` counts."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that the allocator holds and does not use can become the pool.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free = _meminfo("MemAvailable")
    limit, used = _first_number(_CGROUP_LIMITS), _first_number(_CGROUP_USED)
    return free if limit is None or used is None else min(free, limit - used)


def free_device_memory(device: torch.device) -> None:
    """Give back what the allocator keeps of a pass that failed."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def taken_bytes(device: torch.device) -> int:
    """Return the bytes of the device that anybody has taken, or of a CPU those that this process has.

    What the allocator of a GPU keeps and nobody uses is given back before.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free)
    return _status_bytes("VmRSS")


def peak_bytes(device: torch.device, run: Callable[[], object]) -> int:
    """Return the most bytes that a call of `run` takes at a time beside the bytes that were taken before the call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    _reset_peak()
    before = _status_bytes("VmRSS")
    run()
    return max(0, _status_bytes("VmHWM") - before)


def _reset_peak() -> None:
    """Let VmHWM begin again at VmRSS. Where the system does not allow that, the measured step looks larger."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status_bytes(name: str) -> int:
    return _kib_field(Path("/proc/self/status"), name)


def _meminfo(name: str) -> int:
    return _kib_field(Path("/proc/meminfo"), name)


def _kib_field(path: Path, name: str) -> int:
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ModelError(f"{path} has no {name}: this system's memory cannot be read")


def _first_number(paths: tuple[Path, ...]) -> int | None:
    """Return the number in the first file that exists. None: no file exists, or the file says `max`."""
    for path in paths:
        if path.is_file():
            text = path.read_text(encoding="ascii").strip()
            return int(text) if text.isdigit() else None
    return None
