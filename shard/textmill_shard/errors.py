"""Errors of models, and the exit codes of the process (docs/exit-codes.md).

An error is raised where the fault is found, and its message is shown to the operator.
"""

import errno

OTHER, WRONG_SETTING, DISK_FULL, BAD_FILES, UNSUPPORTED_MODEL, OUT_OF_MEMORY = 1, 2, 14, 15, 16, 17
# Of CUDA and its allocator, of torch on a CPU, and of cuBLAS and cuDNN.
_WORDS_OF_MEMORY = ("out of memory", "can't allocate memory", "status_alloc_failed")


class ModelError(Exception):
    """The model cannot be served. The message says what was found and what to change."""

    exit_code = UNSUPPORTED_MODEL


class ModelFilesError(ModelError):
    """A file of the model is missing, is damaged, or says something that no model can have."""

    exit_code = BAD_FILES


class UnsupportedModelError(ModelError):
    """The files are whole, but this engine cannot run such a model as asked for."""


class BackendRefused(ModelError):
    """The attention that was asked for cannot be had on this device, or not for this model."""

    exit_code = WRONG_SETTING


class NotEnoughMemory(ModelError):
    """The model, its largest step and a KV cache of at least one block do not fit."""

    exit_code = OUT_OF_MEMORY


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a process that this error ends.

    torch has no class for memory that ran out on a CPU or within a library, so the words of the message count.
    """
    if isinstance(error, ModelError):
        return error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DISK_FULL
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _WORDS_OF_MEMORY):
        return OUT_OF_MEMORY
    return OTHER


def is_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, also where the clean-up behind that has failed and hides the first error.

    A recording of a CUDA graph that is broken off raises an error of its own.
    """
    found: BaseException | None = error
    while found is not None:
        if exit_code_of(found) == OUT_OF_MEMORY:
            return True
        found = found.__cause__ or found.__context__
    return False
