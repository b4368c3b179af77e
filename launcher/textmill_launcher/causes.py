"""Why a child ended, in words, with advice what to try."""

from collections.abc import Sequence
from dataclasses import dataclass

from textmill_launcher.child_name import ChildName
from textmill_launcher.exit_codes import (
    DISK_ADVICE,
    FOLDER_ADVICE,
    MEMORY_ADVICE,
    ExitCode,
    launcher_code,
    meaning_of,
    signal_name,
)

HANG_ADVICE = (
    "py-spy dump --pid of a hung rank shows where it waits; on GPUs NCCL_DEBUG=INFO names the link that broke; a step "
    "that is only slow is smaller with a smaller --max-batch-prefill-tokens"
)

KERNEL_ADVICE = (
    "CUDA_LAUNCH_BLOCKING=1 shows at which operation of the GPU; then switch parts off in the order of docs/gpu.md "
    "(--no-graphs first), and report the part whose absence helps"
)
GPU_ADVICE = (
    "dmesg (lines with Xid) and `nvidia-smi -q` tell whether the GPU or its memory is damaged; a GPU that stays broken "
    "comes back when the machine or its driver starts anew"
)

# For children that do not know the reason themselves, such as one whose interpreter cannot start.
_BY_WORDS = (
    ("out of memory", MEMORY_ADVICE),
    ("can't allocate memory", MEMORY_ADVICE),
    ("MemoryError", MEMORY_ADVICE),
    ("address already in use", "another server holds that address: choose another --port"),
    ("Permission denied", "the right to read the model's files, to write the cache, or to use a port below 1024"),
    ("No space left on device", DISK_ADVICE),
    ("Read-only file system", FOLDER_ADVICE),
    ("device-side assert", KERNEL_ADVICE),
    ("illegal memory access", KERNEL_ADVICE),
    ("illegal instruction was", KERNEL_ADVICE),
    ("misaligned address", KERNEL_ADVICE),
    ("launch failure", KERNEL_ADVICE),
    ("uncorrectable", GPU_ADVICE),  # errors of its memory (ECC) or of the links between GPUs
    ("busy or unavailable", "no other process may hold the GPU: look at nvidia-smi"),
    ("no kernel image is available", "a build of torch for this GPU: launcher doctor shows the build and the GPU"),
    ("driver version is insufficient", "a newer driver, or a build of torch for an older CUDA (launcher doctor)"),
    ("CUDA error", GPU_ADVICE),
    ("NCCL", HANG_ADVICE),
    ("unrecognized arguments", "an installation whose rooms are of one version: pip install -e . again"),
)


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a child."""

    child: ChildName
    code: int  # the exit code; negative: the number of the signal
    phase: str  # of the service at that time: "starting" or "serving"
    last_lines: tuple[str, ...]
    hang: str = ""  # why the launcher took the child for hung and killed it; empty for a child that ended by itself
    at_s: float = 0.0  # when, on the monotonic clock of this machine

    @property
    def gave_up(self) -> bool:
        """Whether the child ended by its own choice, so that it would do so again."""
        return self.code >= 0

    @property
    def launcher_exit_code(self) -> int:
        """The launcher's exit code, see `launcher_code`."""
        return launcher_code(self.code)

    def describe(self) -> str:
        """Return the child, the cause and the advice in one line, and the child's last lines below."""
        lines = "\n".join("    " + line for line in self.last_lines) or "    (it wrote nothing)"
        what_to_try = HANG_ADVICE if self.hang else advice(self.code, self.last_lines)
        return f"{self.summary}; what to try: {what_to_try}\n  its last lines:\n{lines}"

    @property
    def summary(self) -> str:
        """The child and the cause, in one line."""
        how = f"{self.hang} and was killed" if self.hang else describe_code(self.code)
        if not self.hang and self.code >= 0:
            how += f" ({meaning_of(self.code).cause})"
        return f"{self.child} {how} while {self.phase}"

    @property
    def reason(self) -> str:
        """The kind of end, in one word for metrics."""
        if self.hang:
            return "hung"
        return "killed" if self.code < 0 else "exited"


@dataclass(frozen=True, slots=True)
class NodeLoss:
    """The loss of another node, or its wish to end the start."""

    node: int
    how: str  # in words that follow the name of the node
    phase: str
    at_s: float  # when, on the monotonic clock of this machine

    @property
    def gave_up(self) -> bool:
        """False, because a node may come back."""
        return False

    @property
    def launcher_exit_code(self) -> int:
        """The launcher's exit code."""
        return ExitCode.NODE_LOST.value

    def describe(self) -> str:
        """Return the node, the cause and the advice in one line."""
        return f"{self.summary}; what to try: {meaning_of(ExitCode.NODE_LOST).advice}"

    @property
    def summary(self) -> str:
        """The node and the cause, in one line."""
        return f"node {self.node} {self.how} while {self.phase}"

    @property
    def reason(self) -> str:
        """The kind of loss, in one word for metrics."""
        return "node"


Loss = Ending | NodeLoss
"""Why a start of the shards has ended."""


def describe_code(code: int) -> str:
    """Say how a process ended: `was killed by SIGKILL`, `ended with exit code 3`."""
    return f"ended with exit code {code}" if code >= 0 else f"was killed by {signal_name(-code)}"


def advice(code: int, last_lines: Sequence[str]) -> str:
    """Return what to try: by the exit code that the child chose, or by known words in the last lines, or the signal."""
    if code < 0 or launcher_code(code) != code:
        text = "\n".join(last_lines).lower()
        for words, hint in _BY_WORDS:
            if words.lower() in text:
                return hint
    return meaning_of(code).advice
