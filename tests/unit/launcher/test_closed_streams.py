"""A launcher whose parent has closed the standard streams."""

import subprocess
import sys

import pytest
from textmill_launcher.exit_codes import ExitCode


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code(closed: str) -> None:
    command = [sys.executable, "-m", "textmill_launcher", "--model-id", "/no/such/model"]
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command], capture_output=True, timeout=60)
    assert done.returncode == ExitCode.NO_SUCH_MODEL
    assert b"Traceback" not in done.stdout + done.stderr
