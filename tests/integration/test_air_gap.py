"""A server whose model lies in the cache of the hub starts and answers without asking a name server."""

import os
import subprocess
import sys
from pathlib import Path

import httpx

from tests.fakes.hub import running_hub
from tests.fakes.no_names import trapped
from tests.fakes.processes import launched
from tests.fakes.tiny_models import make_tiny_llama


def test_start_without_a_network_asks_no_name_server(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    cache = tmp_path / "cache"
    fetch = [sys.executable, "-m", "textmill_launcher", "download", "org/tiny", "--huggingface-hub-cache", str(cache)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with running_hub({"org/tiny": files}) as hub:
        environ = {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"}
        subprocess.run(fetch, env=environ, check=True, capture_output=True, timeout=120)
    trap, trace = trapped(tmp_path, os.environ.get("PYTHONPATH", ""))
    arguments = ["--model-id", "org/tiny", "--huggingface-hub-cache", str(cache), "--kv-cache-bytes", "8388608"]
    with launched(arguments, tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(cache), **trap) as server:
        server.wait_ready()
        question = {"inputs": "Hello", "parameters": {"max_new_tokens": 2}}
        answer = httpx.post(f"{server.base_url}/generate", json=question, timeout=60, trust_env=False)
        assert answer.status_code == 200
    assert not trace.exists(), trace.read_text()
