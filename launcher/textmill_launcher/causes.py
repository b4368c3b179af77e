"""Why a child ended, in words, with advice what to try."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from textmill_launcher.child_name import ChildName

MEMORY_ADVICE = (
    "less memory: --kv-cache-bytes or --memory-fraction, a smaller --max-batch-prefill-tokens, a smaller model, "
    "or more shards (--num-shard)"
)
HANG_ADVICE = (
    "py-spy dump --pid of a hung rank shows where it waits; on GPUs NCCL_DEBUG=INFO names the link that broke; a step "
    "that is only slow is smaller with a smaller --max-batch-prefill-tokens"
)
_BY_SIGNAL = {
    signal.SIGKILL: "the kernel kills a process when memory runs out (see dmesg): " + MEMORY_ADVICE,
    signal.SIGSEGV: "a crash in native code: check the versions against constraints.txt, then try --dtype float32",
    signal.SIGBUS: "shared memory or a mapped file ran out: enlarge /dev/shm, check the disk",
    signal.SIGILL: "the installed torch build uses instructions that this processor lacks",
    signal.SIGABRT: "native code gave up: its reason stands in the last lines",
    signal.SIGTERM: "somebody else ended it: look at what manages this machine's processes",
}
_BY_WORDS = (
    ("out of memory", MEMORY_ADVICE),
    ("can't allocate memory", MEMORY_ADVICE),
    ("MemoryError", MEMORY_ADVICE),
    ("address already in use", "another server holds that address: choose another --port"),
    ("Permission denied", "the right to read the model's files, to write the cache, or to use a port below 1024"),
    ("No space left on device", "room on the disk, or another --huggingface-hub-cache or --conversion-cache"),
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

    @property
    def launcher_exit_code(self) -> int:
        """The launcher's exit code: the child's own code, or 128 + the number of the signal, as shells have it.

        Never 0, because the child should not have ended.
        """
        return 128 - self.code if self.code < 0 else self.code or 1

    def describe(self) -> str:
        """Return the child, the cause, the last lines and the advice, in several lines."""
        lines = "\n".join("    " + line for line in self.last_lines) or "    (it wrote nothing)"
        what_to_try = HANG_ADVICE if self.hang else advice(self.code, self.last_lines)
        return f"{self.summary}\n  its last lines:\n{lines}\n  what to try: {what_to_try}"

    @property
    def summary(self) -> str:
        """The child and the cause, in one line."""
        how = f"{self.hang} and was killed" if self.hang else describe_code(self.code)
        return f"{self.child} {how} while {self.phase}"

    @property
    def reason(self) -> str:
        """The kind of end, in one word for metrics."""
        if self.hang:
            return "hung"
        return "killed" if self.code < 0 else "exited"


def describe_code(code: int) -> str:
    """Say how a process ended: `was killed by SIGKILL`, `ended with exit code 3`."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def advice(code: int, last_lines: Sequence[str]) -> str:
    """Return what to try: by known words in the last lines, or else by the signal."""
    text = "\n".join(last_lines).lower()
    for words, hint in _BY_WORDS:
        if words.lower() in text:
            return hint
    for number, hint in _BY_SIGNAL.items():
        if code == -number:
            return hint
    return "its last lines name the reason; LOG_LEVEL=debug shows more"
