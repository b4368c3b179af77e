"""Memory of this machine agrees with the numbers of the system."""

import os

import torch
from textmill_shard.model.system_memory import free_memory_bytes, peak_bytes, total_memory_bytes

CPU = torch.device("cpu")
SIZE = 64 << 20  # bytes


def test_no_more_than_the_ram_is_there_and_no_more_than_that_is_free() -> None:
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < total_memory_bytes(CPU) <= ram  # less where a container has a limit
    assert 0 < free_memory_bytes(CPU) <= total_memory_bytes(CPU)


def test_the_peak_counts_what_a_call_has_given_back() -> None:
    taken = peak_bytes(CPU, lambda: bytearray(b"x" * SIZE).count(b"x"))
    assert taken >= SIZE
    if os.access("/proc/self/clear_refs", os.W_OK):  # else the system does not let a peak begin again
        assert peak_bytes(CPU, lambda: None) < SIZE
