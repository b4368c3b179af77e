"""Gives the C library's free memory back to the system."""

import ctypes


def trim_heap() -> None:
    """Return freed memory to the system, because glibc would keep a freed copy of the weights for ever.

    Other C libraries return freed memory by themselves, or have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
