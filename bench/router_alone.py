"""Measures the router without a model: the real router process in front of the process of a fake shard.

Prints the router's CPU microseconds per token (the cost of its requests included), tokens per second and latencies.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop

from bench.dialects import GenerationWish, TgiDialect
from bench.prompts import PromptMaker
from bench.servers import Server, free_port
from bench.summary import summarise
from bench.traffic import closed_loop
from tests.fakes.byte_tokenizer import write_byte_tokenizer

START_TIMEOUT_S = 30.0


def measure(arguments: argparse.Namespace, streams: int, folder: Path) -> dict[str, Any]:
    """Start both processes, warm up, and return the figures of `streams` requests at a time."""
    model_dir = write_byte_tokenizer(folder / "model")
    socket_path = folder / "shard.sock"
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    shard_command = [
        *(sys.executable, "-m", "tests.fakes.fake_shard"),
        *("--uds-path", str(socket_path)),
        *("--step-ms", str(arguments.step_ms)),
        *("--num-slots", str(streams)),
    ]
    router_command = [
        *(sys.executable, "-m", "textmill_router"),
        *("--model-dir", str(model_dir)),
        *("--model-id", "fake"),
        *("--shard-uds-path", str(socket_path)),
        *("--hostname", "127.0.0.1"),
        *("--port", str(port)),
        *("--max-concurrent-requests", str(2 * streams)),
    ]
    prompts = PromptMaker(model_dir, seed=0).texts(streams * arguments.rounds, arguments.input_len)
    wishes = [GenerationWish(prompt, arguments.output_len, ignore_eos=True) for prompt in prompts]
    dialect = TgiDialect()
    with Server(shard_command, folder / "shard.log") as shard:
        shard.wait_for_path(socket_path, START_TIMEOUT_S)
        with Server(router_command, folder / "router.log") as router:
            router.wait_for_http(f"{url}/health", START_TIMEOUT_S)
            if arguments.pin:
                _pin_apart(router.pid, shard.pid)
            uvloop.run(closed_loop(url, dialect, [GenerationWish("warm", 32)] * 8, concurrency=8))
            before_s, shard_before_s = router.cpu_s(), shard.cpu_s()
            records = uvloop.run(closed_loop(url, dialect, wishes, concurrency=streams))
            router_cpu_s, shard_cpu_s = router.cpu_s() - before_s, shard.cpu_s() - shard_before_s
    figures = summarise(records)
    num_tokens = figures.get("num_output_tokens", 0)
    cost = {"streams": streams, "router_cpu_s": round(router_cpu_s, 3), "fake_shard_cpu_s": round(shard_cpu_s, 3)}
    if num_tokens:
        cost["router_cpu_us_per_token"] = round(router_cpu_s / num_tokens * 1e6, 2)
    return cost | figures


def _pin_apart(router_pid: int, shard_pid: int) -> None:
    """Give the router the last core for itself, and the other cores to the shard and this client."""
    *others, last = sorted(os.sched_getaffinity(0))
    if others:
        os.sched_setaffinity(router_pid, {last})
        os.sched_setaffinity(shard_pid, others)
        os.sched_setaffinity(0, others)


def main() -> None:
    """Print the figures as JSON. The exit code is 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.router_alone", description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--step-ms", type=float, default=10.0, help="time of a step of the fake shard")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2, help="requests per stream")
    parser.add_argument("--pin", action="store_true", help="give the router a core of its own")
    arguments = parser.parse_args()
    cores = os.sched_getaffinity(0)
    results = []
    for streams in arguments.streams:
        with tempfile.TemporaryDirectory(prefix="textmill-bench-") as folder:
            results.append(measure(arguments, streams, Path(folder)))
        os.sched_setaffinity(0, cores)
    print(json.dumps({"settings": vars(arguments), "runs": results}, indent=2))
    sys.exit(1 if any(result["num_failed"] for result in results) else 0)


if __name__ == "__main__":
    main()
