"""Textmill beside `transformers serve`: same model, same prompts, same client, one after the other in one run."""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.dialects import Dialect, GenerationWish, OpenAiDialect, TgiDialect
from bench.machine import busy_s, tree_s
from bench.prompts import PromptMaker
from bench.servers import Server, free_port
from bench.summary import summarise
from bench.traffic import closed_loop

START_TIMEOUT_S = 300.0
STREAM_TIMES = 2  # requests per stream at least


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server of the comparison: how it is started, when it is ready, how it is spoken to."""

    name: str
    command: tuple[str, ...]
    ready_path: str
    dialect: Dialect
    environment: dict[str, str]


def textmill(arguments: argparse.Namespace, port: int) -> Contestant:
    """Our launcher, from the environment that runs this."""
    command = [
        *(str(Path(sys.executable).parent / "launcher"), "--model-id", str(arguments.model)),
        *("--hostname", "127.0.0.1", "--port", str(port), "--dtype", arguments.dtype),
        *arguments.launcher_args,
    ]
    return Contestant("textmill", tuple(command), "/health", TgiDialect(), {})


def transformers_serve(arguments: argparse.Namespace, port: int) -> Contestant:
    """The peer, from its own virtual environment; it batches continuously and runs on the CPU."""
    command = [
        *(str(arguments.peer_venv / "bin" / "transformers"), "serve", str(arguments.model)),
        *("--host", "127.0.0.1", "--port", str(port), "--device", arguments.device, "--dtype", arguments.dtype),
        "--continuous-batching",
    ]
    environment = {"HF_HUB_OFFLINE": "1"}
    return Contestant("transformers", tuple(command), "/health", OpenAiDialect(str(arguments.model)), environment)


def measure(contestant: Contestant, port: int, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Figures for each number of streams, in order. Every number gets prompts of its own."""
    url = f"http://127.0.0.1:{port}"
    results = []
    with Server(contestant.command, folder / f"{contestant.name}.log", contestant.environment) as server:
        server.wait_for_http(url + contestant.ready_path, START_TIMEOUT_S)
        for streams in arguments.streams:
            maker = PromptMaker(arguments.model, seed=arguments.seed + streams)
            num_requests = max(arguments.min_requests, STREAM_TIMES * streams)
            wishes = [
                GenerationWish(text, arguments.output_len) for text in maker.texts(num_requests, arguments.input_len)
            ]
            warm = [GenerationWish(maker.text(arguments.input_len), 8) for _ in range(min(streams, 8))]
            uvloop.run(closed_loop(url, contestant.dialect, warm, concurrency=len(warm)))
            before_s, start_s = _foreign_s(server.pid), time.perf_counter()
            records = uvloop.run(closed_loop(url, contestant.dialect, wishes, concurrency=streams))
            foreign_cores = (_foreign_s(server.pid) - before_s) / (time.perf_counter() - start_s)
            result = {"server": contestant.name, "streams": streams, "foreign_cores": round(foreign_cores, 2)}
            results.append(result | summarise(records))
    return results


def _foreign_s(server_pid: int) -> float:
    """CPU seconds of what is neither the server nor this client: a busy neighbour makes a run worthless."""
    own = os.times()
    return busy_s() - tree_s(server_pid) - own.user - own.system


def table(results: list[dict[str, Any]]) -> str:
    """Figures and the ratio textmill / peer in Markdown."""
    lines = [
        "| streams | | tokens/s | TTFT p50 ms | ITL p50 ms | failed | foreign cores |",
        "|---|---|---|---|---|---|---|",
    ]
    for streams in sorted({result["streams"] for result in results}):
        rows = {}
        for result in results:
            if result["streams"] == streams and "output_tokens_per_s" in result:
                figures = [result["output_tokens_per_s"]]
                figures += [(result[name] or {}).get("p50", float("nan")) for name in ("ttft_ms", "itl_ms")]
                rows[result["server"]] = figures
                cells = " | ".join(f"{figure:.1f}" for figure in figures)
                lines.append(
                    f"| {streams} | {result['server']} | {cells} | {result['num_failed']} | {result['foreign_cores']} |"
                )
        if len(rows) == 2:
            ours, peers = rows["textmill"], rows["transformers"]
            cells = " | ".join(f"{own / other:.2f}" for own, other in zip(ours, peers, strict=True))
            lines.append(f"| {streams} | ratio | {cells} | | |")
    return "\n".join(lines)


def main() -> None:
    """Exit code 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face layout")
    parser.add_argument("--peer-venv", type=Path, help="virtual environment of the peer; without it, Textmill alone")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--min-requests", type=int, default=6, help="requests per measurement, at least 2 a stream")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu", help="of the peer; Textmill picks its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-dir", type=Path, help="keep the servers' logs here")
    parser.add_argument("--output", type=Path, help="write all figures as JSON here")
    parser.add_argument("launcher_args", nargs="*", help="after --: further flags of the launcher")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="textmill-bench-") as scratch:
        folder = arguments.log_dir or Path(scratch)
        makers = [textmill] if arguments.peer_venv is None else [textmill, transformers_serve]
        for make in makers:
            port = free_port()
            results += measure(make(arguments, port), port, arguments, folder)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    sys.exit(1 if any(result["num_failed"] for result in results) else 0)


if __name__ == "__main__":
    main()
