"""Starts the demo model and runs each client of this folder against it: `python -m tests.clients.run`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from textmill_launcher.model_files import find_demo_file
from textmill_launcher.settings import load_settings

from tests.clients.lm_eval.compare import compare
from tests.clients.tasks.servers import task_servers
from tests.fakes.processes import launched

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
CLIENTS_PYTHON = ROOT / ".venv-clients" / "bin" / "python"
JAVASCRIPT = FOLDER / "javascript"  # its packages are there where npm is
KV_BYTES = 256 * 16 * 46_080  # 4,096 tokens of the demo model in fp32
LIMIT_S = 300


def main() -> None:
    """Exit with an exception at the first client that fails; each prints what it did."""
    arguments = ["--dtype", "float32", "--kv-cache-bytes", str(KV_BYTES)]
    with tempfile.TemporaryDirectory() as folder, launched(arguments, Path(folder)) as server:
        server.wait_ready()
        for script in sorted(FOLDER.glob("check_*.py")):
            subprocess.run([str(CLIENTS_PYTHON), str(script), server.base_url], check=True, timeout=LIMIT_S)
        compare(server.base_url, _model_folder())
        _run_task_clients(Path(folder))
        if shutil.which("npm") is not None:  # else the Makefile has said that these are left out
            subprocess.run(["node", "check_clients.mjs", server.base_url], cwd=JAVASCRIPT, check=True, timeout=LIMIT_S)


def _run_task_clients(folder: Path) -> None:
    """Run the clients of text tasks against a server for each task."""
    with task_servers(folder) as urls:
        for environment, script in (
            (".venv-task-clients", "check_vectors.py"),
            (".venv-old-hub", "check_langchain_vectors.py"),
            (".venv-old-hub", "check_hub.py"),
        ):
            python = ROOT / environment / "bin" / "python"
            command = [str(python), str(FOLDER / "tasks" / script), json.dumps(urls)]
            subprocess.run(command, check=True, timeout=LIMIT_S)


def _model_folder() -> Path:
    """The demo model as the server has converted it."""
    cache = load_settings([], os.environ).conversion_cache
    command = [sys.executable, "-m", "textmill_shard", "convert", "--gguf", str(find_demo_file()), "--cache-dir", cache]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    return Path(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
