"""The exit codes of the launcher, of its children, and the page that shows them: `make flags-page`.

Router and shard end with the codes of this table (`exit_codes.py` of the router, `errors.py` of the shard). The
launcher ends with the code of the child that ended the service.
"""

import errno
import signal
from dataclasses import dataclass
from enum import IntEnum

MEMORY_ADVICE = (
    "less memory: --kv-cache-bytes or --memory-fraction, a smaller --max-batch-prefill-tokens, a smaller model, "
    "or more shards (--num-shard)"
)
DISK_ADVICE = "room on the disk, or another --huggingface-hub-cache, --conversion-cache or --native-cache-dir"
FOLDER_ADVICE = (
    "a folder that may be written: --huggingface-hub-cache, --conversion-cache or --native-cache-dir, or HOME"
)


class ExitCode(IntEnum):
    """Why a process ended. 128 and more is 128 and the number of the signal that killed a child."""

    FINE = 0
    OTHER = 1
    WRONG_SETTING = 2
    PORT_TAKEN = 10
    NO_SUCH_MODEL = 11
    NO_ACCESS = 12
    HUB_FAILED = 13
    DISK_FULL = 14
    BAD_FILES = 15
    UNSUPPORTED_MODEL = 16
    OUT_OF_MEMORY = 17
    CHILD_DIED = 18
    NODE_LOST = 19


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an exit code says, and what to try."""

    cause: str
    advice: str


MEANINGS = {
    ExitCode.FINE: Meaning("a signal ended the server, or the command is done", "nothing"),
    ExitCode.OTHER: Meaning("a mistake of the program", "report the traceback in the log"),
    ExitCode.WRONG_SETTING: Meaning(
        "a flag, a variable or a key of the file is wrong, or values exclude each other",
        "change what the message names",
    ),
    ExitCode.PORT_TAKEN: Meaning(
        "the server cannot listen there", "another --port or --hostname; ports below 1024 need rights"
    ),
    ExitCode.NO_SUCH_MODEL: Meaning(
        "there is no such model or revision", "check --model-id and --revision; a private model needs HF_TOKEN"
    ),
    ExitCode.NO_ACCESS: Meaning(
        "the hub refuses access", "accept the model's terms on the hub, and set HF_TOKEN or --hf-token-file"
    ),
    ExitCode.HUB_FAILED: Meaning(
        "the hub cannot be reached, or the download failed", "check the network; a later start goes on where this ended"
    ),
    ExitCode.DISK_FULL: Meaning("the disk is full", DISK_ADVICE),
    ExitCode.BAD_FILES: Meaning(
        "files of the model are missing or damaged, or hold a value of the wrong type",
        "repair what the message names; a hub model: `launcher download`",
    ),
    ExitCode.UNSUPPORTED_MODEL: Meaning(
        "the model cannot be served", "docs/models.md lists the models that can; the message names the reason"
    ),
    ExitCode.OUT_OF_MEMORY: Meaning("memory ran out", MEMORY_ADVICE),
    ExitCode.CHILD_DIED: Meaning(
        "a process of the server ended unexpectedly", "its last lines name the reason; --log-level debug shows more"
    ),
    ExitCode.NODE_LOST: Meaning(
        "one of several nodes did not come, does not fit or was lost",
        "look at that node's log; all nodes need one version, one checkpoint, --master-addr and --master-port",
    ),
}
_BY_SIGNAL = {
    signal.SIGKILL: "the kernel kills a process when memory runs out (see dmesg): " + MEMORY_ADVICE,
    signal.SIGSEGV: "a crash in native code: check the versions against constraints.txt, then try --dtype float32",
    signal.SIGBUS: "shared memory or a mapped file ran out: enlarge /dev/shm, check the disk",
    signal.SIGILL: "the installed torch build uses instructions that this processor lacks",
    signal.SIGABRT: "native code gave up: its reason stands in the last lines",
    signal.SIGTERM: "somebody else ended it: look at what manages this machine's processes",
}


def launcher_code(child_code: int) -> int:
    """Return the launcher's code for the end of a child that should have gone on; negative: killed by that signal.

    A code that the table does not know is that of a child that ended unexpectedly. So is 0.
    """
    if child_code < 0:
        return 128 - child_code
    known = {code.value for code in ExitCode} - {ExitCode.FINE, ExitCode.OTHER}
    return child_code if child_code in known else ExitCode.CHILD_DIED.value


def meaning_of(child_code: int) -> Meaning:
    """Return cause and advice for the end of a child."""
    if child_code < 0:
        advice = next((hint for number, hint in _BY_SIGNAL.items() if child_code == -number), "look at its last lines")
        return Meaning(f"killed by {signal_name(-child_code)}", advice)
    return MEANINGS[ExitCode(launcher_code(child_code))]


def signal_name(number: int) -> str:
    """Return `SIGKILL` for 9, and `signal 77` for a number without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def code_of_os_error(error: OSError, otherwise: ExitCode) -> ExitCode:
    """Return the code of a full disk, or of a folder that cannot be written, where the error says so, else `otherwise`.

    An error of the network has no file.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExitCode.DISK_FULL
    is_unwritable = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
    return ExitCode.WRONG_SETTING if is_unwritable and error.filename is not None else otherwise


def page() -> str:
    """Return the text of docs/exit-codes.md."""
    codes = "\n".join(f"| {code.value} | {MEANINGS[code].cause} | {MEANINGS[code].advice} |" for code in ExitCode)
    signals = "\n".join(f"| {128 + number} | {number.name} | {hint} |" for number, hint in _BY_SIGNAL.items())
    return f"""\
# Exit codes

`make flags-page` writes this page from the launcher's table. The launcher ends with one of these codes, and so do
`launcher plan`, `launcher doctor` and `launcher download`. When a shard or the router ends the service, the first line
of the message names the process and the rank, the cause, and what to try; the process's last lines follow. A missing C
compiler is no failure: one line of the log says that plain torch computes the same results more slowly.

| Code | Cause | What to try |
|---|---|---|
{codes}

When a signal kills a shard or the router, the code is 128 and the number of the signal.

| Code | Signal | What to try |
|---|---|---|
{signals}
"""
