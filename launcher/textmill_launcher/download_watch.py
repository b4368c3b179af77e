"""Watches a process that downloads: tells how far it is, and starts it again when no byte comes.

Transfers by the hub's library `hf_xet` are known to hang for ever. The process that takes the place of a hung one uses
plain HTTP and goes on where the other one ended.
"""

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from textmill_launcher.download_report import MIB, DownloadReport
from textmill_launcher.exit_codes import ExitCode

# Lines of the process that downloads. After the second one no byte comes, because files are compared with checksums.
TO_FETCH = "bytes to fetch:"
ALL_THERE = "all bytes are there"
MAX_ATTEMPTS = 5
POLL_S = 0.5


def repository_folder(cache: Path, model_id: str) -> Path:
    """Return the folder of the cache in which the files of a model lie, as the hub's library names it."""
    return cache / ("models--" + model_id.replace("/", "--"))


def watch(command: Sequence[str], folder: Path, report: DownloadReport, *, stall_s: float) -> int:
    """Run the download to its end, and return its exit code. The last line of its output is passed on."""
    environ = dict(os.environ)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        run = _Run(command, environ, folder, report)
        code = run.wait(stall_s)
        report.end()
        if code is not None:
            if code == 0 and run.last_line:
                print(run.last_line, flush=True)
            return code if code >= 0 else ExitCode.HUB_FAILED
        environ["HF_HUB_DISABLE_XET"] = "1"
        if attempt < MAX_ATTEMPTS:
            way = f"fetching goes on by plain HTTP (attempt {attempt + 1} of {MAX_ATTEMPTS})"
            report.tell(f"no byte came for {stall_s:g} s: {way}")
    report.fail(f"no byte came for {stall_s:g} s, {MAX_ATTEMPTS} times: check the network")
    return ExitCode.HUB_FAILED


def end_with_parent() -> None:
    """End this process when the process that watches is gone, as after a SIGKILL."""
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os._exit(ExitCode.HUB_FAILED)

    threading.Thread(target=wait, daemon=True).start()


class _Run:
    """One process that downloads, in the process group of this one, so that a signal to the group ends both."""

    def __init__(self, command: Sequence[str], environ: dict[str, str], folder: Path, report: DownloadReport) -> None:
        self._folder = folder
        self._report = report
        self._wanted_bytes = 0
        self._is_all_there = False
        self._process = subprocess.Popen(list(command), env=environ, stdout=subprocess.PIPE, text=True)
        self.last_line = ""
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def wait(self, stall_s: float) -> int | None:
        """Return the exit code, or None when no byte came for `stall_s` and the process was killed."""
        began_bytes = seen_bytes = self._bytes_there()
        changed_s = began_s = time.monotonic()
        try:
            while True:
                try:
                    code = self._process.wait(POLL_S)
                    self._reader.join()
                    return code
                except subprocess.TimeoutExpired:
                    pass
                now_s, there = time.monotonic(), self._bytes_there()
                if there != seen_bytes:
                    seen_bytes, changed_s = there, now_s
                elif now_s - changed_s >= stall_s and not self._is_all_there:
                    return None
                if self._wanted_bytes and not self._is_all_there:
                    self._report.show(there - began_bytes, self._wanted_bytes, now_s - began_s)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._reader.join()

    def _bytes_there(self) -> int:
        """Return the bytes of all files of the model on the disk, whole or not. While they change, bytes come."""
        total = 0
        for path in (self._folder / "blobs").glob("*"):
            try:
                total += path.stat().st_size
            except OSError:  # renamed since the folder was read
                continue
        return total

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                text = line.strip()
                if text.startswith(TO_FETCH):
                    self._wanted_bytes += int(text.removeprefix(TO_FETCH))
                    self._report.tell(f"{self._wanted_bytes / MIB:.1f} MiB to fetch")
                elif text == ALL_THERE:
                    self._is_all_there = True
                elif text:
                    self.last_line = text
