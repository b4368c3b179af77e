"""Compares Textmill with its peers, with one model, one set of prompts and one client. The servers run in turn."""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.contestants import Contestant, chosen
from bench.dialects import GenerationWish
from bench.machine import busy_s, tree_s
from bench.prompts import PromptMaker
from bench.servers import Server, free_port
from bench.summary import summarise
from bench.traffic import closed_loop
from bench.workloads import Workload, cached_prefix, first_token, shared_at_once, streams

START_TIMEOUT_S = 600.0  # one peer compiles for minutes
NUM_ROUNDS = {1: 6, 8: 3}  # requests per stream; 2 for more streams
OURS = "textmill"


KINDS = ("streams", "ttft-128", "ttft-1024", "cached-prefix", "shared-at-once")  # of workloads, in order


def workloads(arguments: argparse.Namespace) -> list[tuple[int, Workload]]:
    """Return the workloads of the flags, in the order for every server, each with the number that seeds its prompts."""
    of_streams = [
        streams(
            count,
            input_len=arguments.input_len,
            output_len=arguments.output_len,
            num_requests=count * NUM_ROUNDS.get(count, 2),
        )
        for count in arguments.streams
    ]
    others = dict(zip(KINDS[1:], (first_token(128), first_token(1024), cached_prefix(), shared_at_once()), strict=True))
    by_kind = [*(("streams", one) for one in of_streams), *others.items()]
    return [(number, one) for number, (kind, one) in enumerate(by_kind) if kind in arguments.workloads]


def measure(contestant: Contestant, port: int, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return one entry per workload, in order. Each workload has its own prompts, which are equal for all servers."""
    url = f"http://127.0.0.1:{port}"
    results = []
    with Server(contestant.command, folder / f"{contestant.name}.log", contestant.environment) as server:
        server.wait_for_http(url + contestant.ready_path, START_TIMEOUT_S)
        for number, workload in workloads(arguments):
            maker = PromptMaker(arguments.model, seed=1000 * arguments.seed + number)
            warm = [
                GenerationWish(maker.text(arguments.input_len), 8, ignore_eos=True)
                for _ in range(min(workload.concurrency, 8))
            ]
            wishes = workload.make(maker)
            uvloop.run(closed_loop(url, contestant.dialect, warm, concurrency=len(warm)))
            uvloop.run(closed_loop(url, contestant.dialect, wishes[: workload.num_first], concurrency=1))
            before_s, start_s = _foreign_s(server.pid), time.perf_counter()
            counted = wishes[workload.num_first :]
            records = uvloop.run(closed_loop(url, contestant.dialect, counted, concurrency=workload.concurrency))
            foreign_cores = (_foreign_s(server.pid) - before_s) / (time.perf_counter() - start_s)
            summary = summarise(records)
            entry = {
                "workload": workload.name,
                "unit": workload.unit,
                "is_rate": workload.is_rate,
                "server": contestant.name,
                "figure": round(workload.figure(summary), 3) if summary["num_failed"] == 0 else None,
                "foreign_cores": round(foreign_cores, 2),
            }
            print(json.dumps(entry), file=sys.stderr, flush=True)
            results.append(entry | summary)
    return results


def _foreign_s(server_pid: int) -> float:
    """Return the CPU seconds of all processes but the server and this client.

    A busy neighbour on the machine makes a run worthless.
    """
    own = os.times()
    return busy_s() - tree_s(server_pid) - own.user - own.system


def table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table with a line per workload: all figures, and ours as a multiple of the best peer's."""
    servers = list(dict.fromkeys(result["server"] for result in results))
    lines = [
        "| | unit | " + " | ".join(servers) + " | ours against the best peer | foreign cores, at most |",
        "|---" * (len(servers) + 4) + "|",
    ]
    for name in dict.fromkeys(result["workload"] for result in results):
        rows = {result["server"]: result for result in results if result["workload"] == name}
        first = next(iter(rows.values()))
        figures = {server: rows[server]["figure"] if server in rows else None for server in servers}
        cells = " | ".join("failed" if figure is None else f"{figure:.1f}" for figure in figures.values())
        foreign = max(row["foreign_cores"] for row in rows.values())
        lines.append(f"| {name} | {first['unit']} | {cells} | {_advantage(figures, first['is_rate'])} | {foreign} |")
    return "\n".join(lines)


def _advantage(figures: dict[str, float | None], is_rate: bool) -> str:
    """Return our figure as a multiple of the best peer's, turned so that a number above 1 means that ours is better."""
    ours = figures.get(OURS)
    peers = [figure for server, figure in figures.items() if server != OURS and figure is not None]
    if ours is None or not peers:
        return "-"
    return f"{ours / max(peers):.2f}" if is_rate else f"{min(peers) / ours:.2f}"


def main() -> None:
    """Compare, and print the table. The exit code is 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face layout")
    parser.add_argument("--transformers-venv", type=Path, help="virtual environment with transformers[serving]")
    parser.add_argument("--vllm-venv", type=Path, help="virtual environment with vLLM's CPU build")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server, with --llama-gguf")
    parser.add_argument("--llama-gguf", type=Path, help="the same weights as a GGUF file")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--workloads", nargs="+", choices=KINDS, default=KINDS, help="default: all")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the peers that must be told")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-dir", type=Path, help="keep the servers' logs here")
    parser.add_argument("--output", type=Path, help="write all figures as JSON here")
    parser.add_argument("launcher_args", nargs="*", help="after --: further flags of the launcher")
    arguments = parser.parse_args()
    if (arguments.llama_server is None) != (arguments.llama_gguf is None):
        parser.error("--llama-server and --llama-gguf go together")
    results = []
    with tempfile.TemporaryDirectory(prefix="textmill-bench-") as scratch:
        folder = arguments.log_dir or Path(scratch)
        for make in chosen(arguments):
            port = free_port()
            results += measure(make(arguments, port), port, arguments, folder)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    sys.exit(1 if any(result["num_failed"] for result in results) else 0)


if __name__ == "__main__":
    main()
