"""The launcher's message about a child that has ended."""

import pytest
from textmill_launcher.causes import Ending, advice, describe_code
from textmill_launcher.child_name import ChildName


def ending(code: int, *last_lines: str) -> Ending:
    return Ending(child=ChildName("shard", 1), code=code, phase="serving", last_lines=last_lines)


@pytest.mark.parametrize(
    ("code", "words"),
    [(-9, "was killed by SIGKILL"), (-11, "was killed by SIGSEGV"), (3, "ended with exit code 3"), (-77, "signal 77")],
)
def test_code_is_decoded(code: int, words: str) -> None:
    assert words in describe_code(code)


@pytest.mark.parametrize(("code", "exit_code"), [(17, 17), (2, 2), (3, 18), (1, 18), (0, 18), (-9, 137), (-15, 143)])
def test_launcher_ends_with_a_code_of_the_table_and_never_with_zero(code: int, exit_code: int) -> None:
    assert ending(code).launcher_exit_code == exit_code


def test_first_line_names_rank_cause_phase_and_fix() -> None:
    first = ending(17, "rank 1 of 2 ends: MemoryError").describe().splitlines()[0]
    assert first.startswith("shard rank 1 ended with exit code 17 (memory ran out) while serving; what to try: less")
    assert "--kv-cache-bytes" in first


def test_message_names_rank_cause_phase_last_lines_and_a_remedy() -> None:
    message = ending(-9, "loading", "boom").describe()
    assert message.startswith("shard rank 1 was killed by SIGKILL while serving")
    assert message.index("loading") < message.index("boom")
    assert "--kv-cache-bytes" in message


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("OSError: [Errno 98] Address already in use", "--port"),
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory", "--kv-cache-bytes"),
        ("OSError: No space left on device", "--conversion-cache"),
        ("converting a.gguf failed: [Errno 30] Read-only file system: '/home/a/.cache'", "--conversion-cache"),
        # What CUDA and NCCL say, with the class of torch's exception.
        ("AcceleratorError: CUDA error: device-side assert triggered", "CUDA_LAUNCH_BLOCKING=1"),
        ("RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered", "--no-graphs"),
        ("AcceleratorError: CUDA error: misaligned address", "--no-graphs"),
        ("AcceleratorError: CUDA error: unspecified launch failure", "--no-graphs"),
        ("AcceleratorError: CUDA error: uncorrectable ECC error encountered", "Xid"),
        ("AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable", "nvidia-smi"),
        (
            "RuntimeError: CUDA error: no kernel image is available for execution on the device",
            "build of torch for this",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "--kv-cache-bytes"),
        ("DistBackendError: NCCL error: unhandled system error", "NCCL_DEBUG=INFO"),
    ],
)
def test_known_words_choose_the_advice(line: str, hint: str) -> None:
    assert hint in advice(1, ["first", line])


WATCHDOG = (
    "terminate called after throwing an instance of 'c10::DistBackendError'",
    "  what():  [PG ID 0 PG GUID 0(default_pg) Rank 1] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=42, OpType=ALLREDUCE, NumelIn=4096, NumelOut=4096, Timeout(ms)=600000) ran for 600017 "
    "milliseconds before timing out.",
    "frame #1: c10d::ProcessGroupNCCL::watchdogHandler() (libtorch_cuda.so)",
)


def test_an_exchange_of_nccl_that_torch_gave_up_is_told_with_its_rank() -> None:
    """A thread of torch ends the process with the lines of a C++ exception, which has no exit code of ours."""
    told = ending(-6, *WATCHDOG)
    first, *lines = told.describe().splitlines()
    assert first.startswith("shard rank 1 was killed by SIGABRT while serving")
    assert "NCCL_DEBUG=INFO" in first
    assert any("OpType=ALLREDUCE" in line for line in lines)
    assert told.launcher_exit_code == 134


def test_silent_child_is_said_to_be_silent() -> None:
    assert "it wrote nothing" in ending(1).describe()
