"""Measures the router's memory for each client that asks for a long stream and never reads, as JSON.

The router process stands in front of the process of a fake shard, which gives tokens faster than any model.
"""

import argparse
import contextlib
import json
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.memory import resident_mib
from bench.servers import Server, free_port
from tests.fakes.byte_tokenizer import write_byte_tokenizer

START_TIMEOUT_S = 30.0
AIM_MIB = 0.5
NUM_TOKENS = 30_000
LOOK_S = 0.5
BODIES: dict[str, dict[str, Any]] = {
    "/generate_stream": {"inputs": "hi", "parameters": {"max_new_tokens": NUM_TOKENS, "top_n_tokens": 5}},
    "/v1/completions": {"prompt": "hi", "max_tokens": NUM_TOKENS, "stream": True},
    "/generate": {"inputs": "hi", "parameters": {"max_new_tokens": NUM_TOKENS}},
}


def ask(port: int, route: str) -> socket.socket:
    """Send a call with a small window, and return the connection, from which nobody reads."""
    data = json.dumps(BODIES[route]).encode()
    head = f"POST {route} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.sendall(head.encode() + data)
    return connection


@contextlib.contextmanager
def serving(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[Server, int]]:
    """Run both processes, and give out the router and its port."""
    model_dir = write_byte_tokenizer(folder / "model")
    socket_path, port = folder / "shard.sock", free_port()
    slots = str(arguments.clients + 1)
    shard_command = [sys.executable, "-m", "tests.fakes.fake_shard", "--uds-path", str(socket_path)]
    shard_command += ["--step-ms", "1", "--num-slots", slots]
    router_command = [sys.executable, "-m", "textmill_router", "--model-dir", str(model_dir), "--model-id", "fake"]
    router_command += ["--shard-uds-path", str(socket_path), "--hostname", "127.0.0.1", "--port", str(port)]
    router_command += ["--max-concurrent-requests", slots, "--stall-timeout", str(arguments.seconds + START_TIMEOUT_S)]
    with Server(shard_command, folder / "shard.log") as shard:
        shard.wait_for_path(socket_path, START_TIMEOUT_S)
        with Server(router_command, folder / "router.log") as router:
            router.wait_for_http(f"http://127.0.0.1:{port}/health", START_TIMEOUT_S)
            yield router, port


def measure(arguments: argparse.Namespace, route: str, folder: Path) -> dict[str, Any]:
    """Return the most MiB for each client that the router took while nobody read."""
    with serving(folder, arguments) as (router, port), contextlib.ExitStack() as stack:
        stack.enter_context(ask(port, route))
        time.sleep(LOOK_S)
        before = most = resident_mib(router.pid)
        for _ in range(arguments.clients):
            stack.enter_context(ask(port, route))
        end_s = time.monotonic() + arguments.seconds
        while time.monotonic() < end_s:
            time.sleep(LOOK_S)
            most = max(most, resident_mib(router.pid))
    return {"route": route, "mib_per_client": round((most - before) / arguments.clients, 3)}


def main() -> None:
    """Print the figures. The exit code is 1 when the aim is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.stalled_clients", description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0, help="time in which nobody reads")
    arguments = parser.parse_args()
    results = []
    for route in BODIES:
        with tempfile.TemporaryDirectory(prefix="textmill-bench-") as folder:
            results.append(measure(arguments, route, Path(folder)))
    print(json.dumps({"settings": vars(arguments), "aim_mib": AIM_MIB, "runs": results}, indent=2))
    sys.exit(0 if all(result["mib_per_client"] <= AIM_MIB for result in results) else 1)


if __name__ == "__main__":
    main()
