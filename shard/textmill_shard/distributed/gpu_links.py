"""Finds what makes NCCL slow, or fail, between the GPUs of one machine, and says what to change."""

import shutil
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch

SHARED_MEMORY = Path("/dev/shm")
# NCCL keeps some tens of MiB there for each pair of ranks that do not reach each other's memory.
LEAST_SHM_BYTES = 256 * 1024**2
_MIB = 1024**2


def link_warnings(devices: Sequence[int], *, shared_memory: Path = SHARED_MEMORY) -> list[str]:
    """Return a sentence for each thing that is missing between these GPUs, by number. An empty list: nothing is."""
    if len(devices) < 2:
        return []
    found = []
    apart = [pair for pair in combinations(devices, 2) if not _reach_each_other(*pair)]
    if apart:
        names = ", ".join(f"{first} and {second}" for first, second in apart)
        found.append(
            f"GPUs {names} do not reach each other's memory (peer access), so that NCCL copies through the memory of "
            "the machine, which is slower: `nvidia-smi topo -m` shows the links"
        )
    if not shared_memory.is_dir():
        found.append(f"{shared_memory} is not there, through which NCCL exchanges between processes: mount it")
    elif (free := shutil.disk_usage(shared_memory).free) < LEAST_SHM_BYTES:
        found.append(
            f"{shared_memory} has {free // _MIB} MiB free, and NCCL may need {LEAST_SHM_BYTES // _MIB} MiB: enlarge it "
            "(docker run --shm-size 1g; an emptyDir of medium Memory), or a shard ends with SIGBUS or a system error"
        )
    return found


def _reach_each_other(first: int, second: int) -> bool:
    both = (first, second), (second, first)
    return all(torch.cuda.can_device_access_peer(one, other) for one, other in both)
