"""Measures what a refused call costs: a full router in front of a fake shard that never steps, and clients that go on.

Prints the refusals per second of the router's CPU time. The router is full by its permits, by its queue, or asks for a
key that no client has.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import httptools
import uvloop

from bench.servers import Server, free_port
from tests.fakes.byte_tokenizer import write_byte_tokenizer

START_TIMEOUT_S = 30.0
NUM_HOLDERS = 4  # calls that fill the server
WAYS = {
    "permits": (["--max-concurrent-requests", str(NUM_HOLDERS)], 429),
    "queue": (["--max-queued-requests", str(NUM_HOLDERS - 1)], 429),  # one request has the only slot
    "key": (["--api-key", "no client has this key"], 401),
}


class _Asker(asyncio.Protocol):
    """A connection that sends the call again as soon as its answer is there."""

    def __init__(self, request: bytes, statuses: dict[int, int]) -> None:
        self._request = request
        self._statuses = statuses
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._statuses[status] = self._statuses.get(status, 0) + 1
        self._transport.write(self._request)


def _request(prompt: str) -> bytes:
    body = json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": 64}}).encode()
    head = f"POST /generate HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def _ask(port: int, request: bytes, *, connections: int, seconds: float) -> dict[int, int]:
    """Send the call on so many connections at once for so many seconds; return how often each status came."""
    statuses: dict[int, int] = {}
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: _Asker(request, statuses), "127.0.0.1", port) for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    for transport, _ in made:
        transport.abort()
    return statuses


async def _hold(port: int, request: bytes, count: int) -> list[asyncio.StreamWriter]:
    """Send calls that get no answer, one after the other, and return their connections."""
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        await writer.drain()
        await asyncio.sleep(0.1)
        writers.append(writer)
    return writers


def measure(way: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fill a router in this way, and return the figures of its refusals."""
    flags, wanted = WAYS[way]
    model_dir = write_byte_tokenizer(folder / "model")
    socket_path = folder / "shard.sock"
    port = free_port()
    shard = [sys.executable, "-m", "tests.fakes.fake_shard", "--uds-path", str(socket_path)]
    shard += ["--step-ms", "3600000", "--num-slots", "1"]
    router = [
        *(sys.executable, "-m", "textmill_router", "--model-dir", str(model_dir), "--model-id", "fake"),
        *("--shard-uds-path", str(socket_path), "--hostname", "127.0.0.1", "--port", str(port)),
        *flags,
    ]
    request = _request("x" * arguments.input_len)

    async def drive() -> tuple[dict[int, int], float, float]:
        holders = [] if wanted == 401 else await _hold(port, request, NUM_HOLDERS)
        await _ask(port, request, connections=arguments.connections, seconds=1.0)
        cpu_s, began_s = running.cpu_s(), time.perf_counter()
        statuses = await _ask(port, request, connections=arguments.connections, seconds=arguments.seconds)
        figures = statuses, running.cpu_s() - cpu_s, time.perf_counter() - began_s
        for writer in holders:
            writer.transport.abort()
        return figures

    with Server(shard, folder / "shard.log") as fake:
        fake.wait_for_path(socket_path, START_TIMEOUT_S)
        with Server(router, folder / "router.log") as running:
            running.wait_for_http(f"http://127.0.0.1:{port}/health", START_TIMEOUT_S)
            statuses, cpu_s, wall_s = uvloop.run(drive())
    count = statuses.get(wanted, 0)
    return {
        "full_by": way,
        "statuses": statuses,
        "refusals_per_cpu_second": round(count / cpu_s),
        "refusals_per_second": round(count / wall_s),
        "cpu_us_per_refusal": round(cpu_s / max(1, count) * 1e6, 1),
        "num_failed": sum(statuses.values()) - count + (count == 0),
    }


def main() -> None:
    """Print the figures as JSON. The exit code is 1 when a call got another status."""
    parser = argparse.ArgumentParser(prog="python -m bench.rejections", description=__doc__)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--input-len", type=int, default=512, help="characters of the prompt")
    arguments = parser.parse_args()
    runs = []
    for way in arguments.ways:
        with tempfile.TemporaryDirectory(prefix="textmill-bench-") as folder:
            runs.append(measure(way, arguments, Path(folder)))
    print(json.dumps({"settings": vars(arguments), "runs": runs}, indent=2))
    sys.exit(1 if any(run["num_failed"] for run in runs) else 0)


if __name__ == "__main__":
    main()
