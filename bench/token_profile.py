"""Divides the time of a token: by the shard's clocks, and by the CPU time of gRPC, router and client.

Prompts of one length are sent at once. Times count from the moment when every request has its first token, so that
every step decodes. Read the result beside that of the native step alone (`python -m bench.kernels`).
"""

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import uvloop

from bench.dialects import GenerationWish, TgiDialect
from bench.http_stream import StreamRecord
from bench.machine import busy_s, family, threads_s
from bench.prompts import PromptMaker
from bench.servers import Server, free_port
from bench.traffic import closed_loop

START_TIMEOUT_S = 300.0
STEP = 'tgi_batch_inference_duration_{}{{method="decode"}}'
FORWARD = 'tgi_batch_forward_duration_{}{{method="decode"}}'
PREFILL_FORWARD = 'tgi_batch_forward_duration_{}{{method="prefill"}}'
# Rows of the table, in order.
PARTS = (
    "time between two tokens",
    "forward pass, by the shard's clock",
    "rest of the step: tokens, ends, result",
    "between two steps",
    "CPU of the shard's other threads (gRPC)",
    "CPU of the router",
    "CPU of this client",
    "CPU of all others (must be small)",
)


@dataclass(frozen=True, slots=True)
class Clocks:
    """The seconds of CPU so far, and the sums and counts of the router's metrics."""

    computing_s: float  # the threads of the shard that compute
    shard_s: float
    router_s: float
    client_s: float
    machine_s: float
    metrics: dict[str, float]


class Watch:
    """The clocks of a running launcher."""

    def __init__(self, launcher_pid: int, url: str, num_threads: int) -> None:
        self._url = url
        self._num_threads = num_threads
        self._shard = _child(launcher_pid, "textmill_shard")
        self._router = _child(launcher_pid, "textmill_router")

    def read(self) -> Clocks:
        """Return the numbers of this moment."""
        shard_by_thread = threads_s(self._shard)
        own = os.times()
        return Clocks(
            # The native team, the step loop among them, are the threads that have used by far the most CPU time.
            computing_s=sum(sorted(shard_by_thread.values())[-self._num_threads :]),
            shard_s=sum(shard_by_thread.values()),
            router_s=sum(threads_s(self._router).values()),
            client_s=own.user + own.system,
            machine_s=busy_s(),
            metrics=_read_metrics(self._url),
        )


def _child(pid: int, module: str) -> int:
    wanted = f"-m\0{module}\0"
    [found] = [member for member in family(pid) if wanted in Path(f"/proc/{member}/cmdline").read_text()]
    return found


def _read_metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    samples = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in samples}


def decode_intervals_ms(records: Sequence[StreamRecord]) -> list[float]:
    """Return the times between two tokens of a request while every request had its first token and none its last."""
    start_s = max(record.token_times_s[0] for record in records)
    end_s = min(record.token_times_s[-1] for record in records)
    return [
        (later - earlier) * 1e3
        for record in records
        for earlier, later in pairwise(record.token_times_s)
        if earlier >= start_s and later <= end_s
    ]


def profile(watch: Watch, url: str, wishes: Sequence[GenerationWish]) -> dict[str, float]:
    """Send all wishes at once, and return the milliseconds per decode step of each of PARTS."""
    before = watch.read()
    records = uvloop.run(closed_loop(url, TgiDialect(), wishes, concurrency=len(wishes)))
    after = watch.read()
    for record in records:
        if record.error is not None:
            raise SystemExit(f"a request failed: {record.error}")

    def grown(name: str, what: str) -> float:
        return after.metrics.get(name.format(what), 0.0) - before.metrics.get(name.format(what), 0.0)

    intervals_ms = decode_intervals_ms(records)
    token_ms = sum(intervals_ms) / len(intervals_ms)
    num_decodes = grown(STEP, "count")
    num_steps = num_decodes + grown(PREFILL_FORWARD, "count")
    step_ms = grown(STEP, "sum") / num_decodes * 1e3
    forward_ms = grown(FORWARD, "sum") / num_decodes * 1e3
    computing_s = after.computing_s - before.computing_s
    shard_s = after.shard_s - before.shard_s
    router_s, client_s = after.router_s - before.router_s, after.client_s - before.client_s
    foreign_s = after.machine_s - before.machine_s - shard_s - router_s - client_s
    figures = (
        token_ms,
        forward_ms,
        step_ms - forward_ms,
        token_ms - step_ms,
        (shard_s - computing_s) / num_steps * 1e3,
        router_s / num_steps * 1e3,
        client_s / num_steps * 1e3,
        foreign_s / num_steps * 1e3,
    )
    return dict(zip(PARTS, figures, strict=True))


def table(profiles: dict[int, dict[str, float]]) -> str:
    """Return a Markdown table of milliseconds per decode step."""
    lines = ["| ms per decode step | " + " | ".join(f"{count} streams" for count in profiles) + " |"]
    lines.append("|---" * (len(profiles) + 1) + "|")
    lines += [
        f"| {part} | " + " | ".join(f"{figures[part]:.2f}" for figures in profiles.values()) + " |" for part in PARTS
    ]
    return "\n".join(lines)


def main() -> None:
    """Start the launcher with the model, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.token_profile", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face layout")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument(
        "--rounds", type=int, default=7, help="of each number of streams; the median of each part counts"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the shard's native team")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="also print every round")
    parser.add_argument("launcher_args", nargs="*", help="after --: further flags of the launcher")
    arguments = parser.parse_args()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *(str(Path(sys.executable).parent / "launcher"), "--model-id", str(arguments.model)),
        *("--hostname", "127.0.0.1", "--port", str(port), "--dtype", arguments.dtype),
        *("--num-threads", str(arguments.threads), *arguments.launcher_args),
    ]
    maker = PromptMaker(arguments.model, arguments.seed)
    rounds: dict[int, list[dict[str, float]]] = {count: [] for count in arguments.streams}
    with (
        tempfile.TemporaryDirectory(prefix="textmill-bench-") as folder,
        Server(command, Path(folder) / "textmill.log") as server,
    ):
        server.wait_for_http(f"{url}/health", START_TIMEOUT_S)
        warm = [GenerationWish(maker.text(arguments.input_len), 32, ignore_eos=True)]
        uvloop.run(closed_loop(url, TgiDialect(), warm, concurrency=1))
        watch = Watch(server.pid, url, arguments.threads)
        for _ in range(arguments.rounds):
            for count in arguments.streams:
                texts = maker.texts(count, arguments.input_len)
                wishes = [GenerationWish(text, arguments.output_len, ignore_eos=True) for text in texts]
                rounds[count].append(profile(watch, url, wishes))
                time.sleep(0.2)  # for the rest of the last round: connections that close, a heartbeat
    if arguments.json:
        print(json.dumps(rounds, indent=2))
    print(table({count: _medians(found) for count, found in rounds.items()}))


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: sorted(figures[part] for figures in rounds)[len(rounds) // 2] for part in PARTS}


if __name__ == "__main__":
    main()
