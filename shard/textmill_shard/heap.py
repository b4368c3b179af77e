"""Gives the C library's free memory back to the system."""

import ctypes


def trim_heap() -> None:
    """Hand back what was freed: glibc keeps it, and a freed copy of the weights would count as ours for ever.

    Other C libraries give it back themselves or have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
