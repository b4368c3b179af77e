"""A short soak: processes are killed and stopped at random under all kinds of clients, and nothing is lost or wrong.

`make soak` runs the longer one.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 60
LIMIT_S = 420.0  # with the start, the last calls and the last restarts, on a machine with other work


@pytest.mark.faults
@pytest.mark.slow  # A minute of faults, because a lost replica of two ranks needs some seconds to come back.
def test_a_minute_of_faults_loses_and_changes_nothing(tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    command = [sys.executable, "-m", "tests.soak", "--seconds", str(SECONDS), "--seed", "7", "--log", str(log_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == report["lost"] == [], log_file.read_text()[-5000:]
    assert done.returncode == 0
    assert report["calls"]["answered"] > 50
    assert sum(report["faults"].values()) >= 8
