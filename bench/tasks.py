"""Texts per second of a model of vectors over HTTP, beside transformers' pipeline and servers of other projects.

The contestants take turns of a few seconds in each round, so that a machine that others use too slows all of them.
Texts per second of CPU time are those of all processes of a contestant, without the client.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import uvloop

from bench.servers import Server, free_port
from bench.task_client import closed_loop, one_by_one
from bench.task_pipeline import Pipeline

START_LIMIT_S = 300.0
NUM_CALLERS = 128
NUM_TEXTS = 2048
WORDS = (
    *("the", "happy", "dog", "and", "a", "sunny", "day", "near", "old", "river", "who", "read", "about", "animals"),
    *("in", "garden", "people", "with", "seven", "house"),
)
# Words of a text; MiniLM's tokenizer makes one token of each of them, and adds two.
LENGTHS = {"short": (16, 16), "mixed": (4, 192)}


@dataclass(frozen=True, slots=True)
class Turn:
    """What a contestant has done in one turn."""

    num_texts: int
    seconds: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        return self.num_texts / self.seconds

    @property
    def per_cpu_s(self) -> float:
        return self.num_texts / max(self.cpu_s, 1e-3)


@dataclass(slots=True)
class Contestant:
    """One way to compute vectors. `run` computes texts for a time."""

    name: str
    run: Callable[[Sequence[str], float], Turn]
    turns: dict[str, list[Turn]] = field(default_factory=dict)


def make_texts(kind: str, seed: int) -> list[str]:
    """Return the texts of a set, of random words and random lengths."""
    chance = random.Random(seed)
    low, high = LENGTHS[kind]
    return [" ".join(chance.choices(WORDS, k=chance.randint(low, high))) for _ in range(NUM_TEXTS)]


def server_contestant(name: str, server: Server, url: str, path: str, key: str) -> Contestant:
    """Return a contestant that is asked by 128 callers at once, each with one text after the other."""

    def run(texts: Sequence[str], seconds: float) -> Turn:
        bodies = [json.dumps({key: text}).encode() for text in texts]
        before_s = _cpu_s(server.pid)
        calls = uvloop.run(closed_loop(url, path, bodies, num_callers=NUM_CALLERS, seconds=seconds))
        if calls.num_failed:
            raise SystemExit(f"{name}: {calls.num_failed} calls failed")
        return Turn(len(calls.times_s), calls.seconds, _cpu_s(server.pid) - before_s)

    return Contestant(name, run)


def pipeline_contestant(pipe: Pipeline) -> Contestant:
    """Return the pipeline in this process, which gets one text after the other."""

    def run(texts: Sequence[str], seconds: float) -> Turn:
        began_s, before_s = time.perf_counter(), time.process_time()
        num_texts = pipe.run(texts, seconds)
        return Turn(num_texts, time.perf_counter() - began_s, time.process_time() - before_s)

    return Contestant("transformers pipeline, one by one", run)


def _cpu_s(pid: int) -> float:
    """Return the user and system seconds of a process and of all below it."""
    top = psutil.Process(pid)
    times = [each.cpu_times() for each in (top, *top.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def launcher_command(model: Path, port: int, *, dtype: str, threads: int) -> list[str]:
    return [
        *(sys.executable, "-m", "textmill_launcher", "--model-id", str(model), "--port", str(port)),
        *("--dtype", dtype, "--device", "cpu", "--num-threads", str(threads)),
    ]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.tasks", description=__doc__)
    parser.add_argument("--model-id", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one turn")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument(
        "--sentence-transformers", metavar="PYTHON", help="a Python with sentence-transformers, starlette and uvicorn"
    )
    parser.add_argument("--infinity", metavar="COMMAND", help="infinity_emb of an environment of its own")
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse()
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pipe = Pipeline(arguments.model_id, threads=arguments.threads)
        contestants = [pipeline_contestant(pipe)]
        ports: dict[str, int] = {}
        for dtype in arguments.dtypes.split(","):
            port = ports[dtype] = free_port()
            command = launcher_command(arguments.model_id, port, dtype=dtype, threads=arguments.threads)
            server = stack.enter_context(Server(command, logs / f"{dtype}.log"))
            server.wait_for_http(f"http://127.0.0.1:{port}/health/ready", START_LIMIT_S)
            contestants.append(
                server_contestant(f"Textmill, {dtype}", server, f"http://127.0.0.1:{port}", "/embed", "inputs")
            )
        for name, command, path, key in _peers(arguments):
            port = free_port()
            server = stack.enter_context(Server([*command, str(port)], logs / f"{name}.log"))
            server.wait_for_http(f"http://127.0.0.1:{port}/health", START_LIMIT_S)
            contestants.append(server_contestant(name, server, f"http://127.0.0.1:{port}", path, key))
        for kind in LENGTHS:
            texts = make_texts(kind, seed=1)
            for one in contestants:
                one.run(texts, 1.0)  # warm up
            for _ in range(arguments.rounds):
                for one in contestants:
                    one.turns.setdefault(kind, []).append(one.run(texts, arguments.seconds))
        print(render(contestants))
        print(waiting_calls(ports, pipe))


def _peers(arguments: argparse.Namespace) -> list[tuple[str, list[str], str, str]]:
    """Return name, command up to the port, path and field of each server of another project."""
    peers = []
    model, threads = str(arguments.model_id), str(arguments.threads)
    if arguments.sentence_transformers:
        script = str(Path(__file__).with_name("task_peer.py"))
        peers.append(
            (
                "sentence-transformers behind a plain server",
                [arguments.sentence_transformers, "-P", script, model, threads],
                "/embed",
                "inputs",
            )
        )
    if arguments.infinity:
        command = [
            *arguments.infinity.split(),
            "v2",
            "--model-id",
            model,
            "--device",
            "cpu",
            "--engine",
            "torch",
            "--port",
        ]
        peers.append(("infinity-emb", command, "/embeddings", "input"))
    return peers


def render(contestants: Sequence[Contestant]) -> str:
    """Return a table of texts per second, and of the ratios to the first contestant: the median of the rounds."""
    first = contestants[0]
    lines = [
        "| Contestant | " + " | ".join(f"{kind}: texts/s | ratio | ratio by CPU time" for kind in LENGTHS) + " |",
        "|---|" + "---|---|---|" * len(LENGTHS),
    ]
    for one in contestants:
        cells = []
        for kind in LENGTHS:
            pairs = list(zip(one.turns[kind], first.turns[kind], strict=True))
            cells += [
                f"{statistics.median(turn.per_s for turn in one.turns[kind]):.0f}",
                f"{statistics.median(mine.per_s / theirs.per_s for mine, theirs in pairs):.2f}",
                f"{statistics.median(mine.per_cpu_s / theirs.per_cpu_s for mine, theirs in pairs):.2f}",
            ]
        lines.append(f"| {one.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def waiting_calls(ports: dict[str, int], pipe: Pipeline) -> str:
    """Return the latency of one short text, and 32 mixed calls at once beside the same calls one by one."""
    lines = []
    short, mixed = make_texts("short", seed=2)[:200], make_texts("mixed", seed=2)[:32]
    bare_s = pipe.bare_s(short)
    for dtype, port in ports.items():
        url = f"http://127.0.0.1:{port}"
        single = uvloop.run(one_by_one(url, "/embed", [json.dumps({"inputs": text}).encode() for text in short]))
        bodies = [json.dumps({"inputs": text}).encode() for text in mixed]
        ratios = []
        for _ in range(7):
            began_s = time.perf_counter()
            uvloop.run(one_by_one(url, "/embed", bodies))
            middle_s = time.perf_counter()
            uvloop.run(_all_at_once(url, bodies))
            ratios.append((middle_s - began_s) / (time.perf_counter() - middle_s))
        lines.append(
            f"{dtype}: one short text {statistics.median(single.times_s) * 1000:.2f} ms, the bare forward pass in fp32 "
            f"{bare_s * 1000:.2f} ms (ratio {statistics.median(single.times_s) / bare_s:.2f}); "
            f"32 mixed calls at once are "
            f"{statistics.median(ratios):.2f} times as fast as one by one (least {min(ratios):.2f})"
        )
    return "\n".join(lines)


async def _all_at_once(url: str, bodies: Sequence[bytes]) -> None:
    await asyncio.gather(*(one_by_one(url, "/embed", [body]) for body in bodies))


if __name__ == "__main__":
    main()
