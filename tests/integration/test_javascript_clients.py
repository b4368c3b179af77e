"""openai, the AI SDK and @huggingface/inference for JavaScript against a running server with the demo model."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes import LaunchedServer

FOLDER = Path(__file__).parents[1] / "clients" / "javascript"
LIMIT_S = 120


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
@pytest.mark.skipif(not (FOLDER / "node_modules").is_dir(), reason=f"run `npm ci` in {FOLDER.name} first")
def test_javascript_clients_get_answers(real_server: LaunchedServer) -> None:
    command = ["node", "check_clients.mjs", real_server.base_url]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": ok") == 3
