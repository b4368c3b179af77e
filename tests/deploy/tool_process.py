"""A program that a test installs into a venv of its own, with its log in a file."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.deploy.manifests import REPOSITORY
from tests.fakes.processes import wait_until

BIN = REPOSITORY / ".venv-proxies" / "bin"
START_LIMIT_S = 30
STOP_LIMIT_S = 10


@contextmanager
def running_tool(command: Sequence[str | Path], log_file: Path, ready_url: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a program of the venv, and wait until GET `ready_url` is 200; end the program when the block is left."""
    name, *arguments = map(str, command)
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / name), *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        )
    try:
        wait_until(lambda: _answers(ready_url), START_LIMIT_S, f"{name} answers", log_file.read_text)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_LIMIT_S)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
