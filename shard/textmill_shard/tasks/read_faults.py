"""What becomes of a row that cannot be read: the client's fault, or a lack of memory that ends this row alone."""

from collections.abc import Callable
from typing import TypeVar

from textmill_shard.engine.memory_faults import is_out_of_memory
from textmill_shard.media.errors import MediaError, NoMemory, TextError
from textmill_shard.tasks.rows import FailureCode, RowFailure

Read = TypeVar("Read")


def note_memory(read: Callable[[], Read]) -> Read:
    """Return what `read` returns. Raises NoMemory where `read` found no memory, on the host or on a device."""
    try:
        return read()
    except Exception as error:
        if is_out_of_memory(error):
            raise NoMemory("there is no memory to read this input, even alone; send a smaller one") from error
        raise


def failure_of(error: MediaError) -> RowFailure:
    """Return the failure of a row whose reading raised `error`."""
    if isinstance(error, NoMemory):
        return RowFailure(FailureCode.NO_MEMORY, str(error))
    return RowFailure(FailureCode.BAD_TEXT if isinstance(error, TextError) else FailureCode.BAD_MEDIA, str(error))
