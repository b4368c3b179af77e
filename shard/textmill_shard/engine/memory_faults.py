"""What a step that ran out of memory is, and the result of a request that has no room even alone."""

import torch

from textmill_shard.engine.row_sampling import RowFault
from textmill_shard.slots.plan import SlotErrorCode

NO_ROOM = RowFault(SlotErrorCode.INTERNAL, "the memory does not hold a step of this request, even alone")
# torch's allocator of a CPU has no exception of its own.
_WORDS_OF_CPU = "can't allocate memory"


def is_out_of_memory(error: Exception) -> bool:
    """Whether the exception of a forward pass says that memory ran out, on a device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _WORDS_OF_CPU in str(error)
