"""Launcher, router and shard mean the same by an exit code."""

import errno

import pytest
import textmill_router.exit_codes as router_codes
import textmill_shard.errors as shard_codes
from textmill_launcher.exit_codes import MEANINGS, ExitCode
from textmill_shard.errors import (
    ModelFilesError,
    NotEnoughMemory,
    UnsupportedModelError,
    exit_code_of,
    is_of_memory,
)


def codes_of(module: object) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if name.isupper() and isinstance(value, int)}


@pytest.mark.parametrize("module", [router_codes, shard_codes], ids=["router", "shard"])
def test_codes_of_a_child_are_those_of_the_launcher(module: object) -> None:
    assert codes_of(module)
    for name, value in codes_of(module).items():
        assert ExitCode[name] == value


def test_every_code_has_a_meaning_and_none_is_that_of_a_signal() -> None:
    assert set(MEANINGS) == set(ExitCode)
    assert max(ExitCode) < 128


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelFilesError("model.safetensors is cut off"), ExitCode.BAD_FILES),
        (UnsupportedModelError("models of type x cannot be served"), ExitCode.UNSUPPORTED_MODEL),
        (NotEnoughMemory("leaves 0 bytes"), ExitCode.OUT_OF_MEMORY),
        (MemoryError("cannot start 2 threads"), ExitCode.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), 17),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ExitCode.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 17),
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.DISK_FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ExitCode.DISK_FULL),
        (ZeroDivisionError(), ExitCode.OTHER),
    ],
)
def test_shard_ends_with_the_code_of_its_error(error: Exception, code: int) -> None:
    assert exit_code_of(error) == code


def break_off_a_recording() -> None:
    try:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def test_memory_that_ran_out_is_found_behind_the_error_of_a_clean_up() -> None:
    """CUDA ends a recording that was broken off with an error of its own."""
    with pytest.raises(RuntimeError, match="previous error") as found:
        break_off_a_recording()
    assert is_of_memory(found.value)
    assert exit_code_of(found.value) == ExitCode.OTHER
    assert not is_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
