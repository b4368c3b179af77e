"""SIGUSR1 to the launcher writes what each process is doing, and the server goes on."""

import signal
from pathlib import Path

import httpx

from tests.fakes.processes import START_LIMIT_S, launched, wait_until
from tests.fakes.tiny_models import make_tiny_llama


def test_signal_writes_stacks_queue_and_slots_of_all_processes(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    arguments = ["--model-id", str(model), "--dtype", "float32", "--kv-cache-bytes", str(8 * 1024 * 1024)]
    with launched(arguments, tmp_path) as server:
        server.wait_for_log("router: started")
        server.process.send_signal(signal.SIGUSR1)  # a child that still starts is not ended by the signal
        server.wait_ready()
        before = len(server.log_text)
        server.process.send_signal(signal.SIGUSR1)

        def told() -> bool:
            text = server.log_text[before:]
            words = ("num_free_slots=64", "num_waiting=0", "num_permits_held=0", "shard rank 0: pid ", "router: pid ")
            stacks = (
                'lifecycle.py", line',  # of the shard and the router
                'supervisor.py", line',
                "shard rank 0: Thread 0x",
            )
            return all(word in text for word in (*words, *stacks))

        wait_until(told, START_LIMIT_S, "all processes have told what they do", lambda: server.log_text[before:])
        question = {"inputs": "Hello", "parameters": {"max_new_tokens": 2}}
        answer = httpx.post(f"{server.base_url}/generate", json=question, timeout=60, trust_env=False)
        assert answer.status_code == 200
        assert server.stop(signal.SIGTERM) == 0
