"""Freed memory goes back to the system."""

import platform
import re
from pathlib import Path

import pytest
import torch
from textmill_shard.heap import trim_heap

PIECE_BYTES = 64 << 10  # below the size from which the C library maps memory apart
NUM_PIECES = 1000
MIB = 1 << 20


def resident_bytes() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory in this way")
def test_freed_tensors_leave_the_resident_set() -> None:
    pieces = [torch.ones(PIECE_BYTES // 4) for _ in range(NUM_PIECES)]
    last = torch.ones(PIECE_BYTES // 4)  # stays above the others: the heap cannot shrink from its end
    del pieces
    before = resident_bytes()
    trim_heap()
    assert before - resident_bytes() > NUM_PIECES * PIECE_BYTES // 2
    assert last[0] == 1
