"""Compares decode steps of several ranks, each with one thread, with those of one rank with as many threads, on a CPU.

The ranks run the step of a llama with random weights as the server does: rank 0 sends an entry, all ranks compute, and
rank 0 sends the tokens. The ways take turns in one run, and each is judged by its fastest turn, because another program
on the cores makes all ways slower, but not equally.

Run with `python -m bench.ranks`. The output is a Markdown table.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.engine.rank_channel import GlooChannel, RankChannel, RankEntry, SoloChannel
from textmill_shard.engine.shared_channel import SharedChannel
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from transformers import LlamaConfig, LlamaForCausalLM

BLOCK_SIZE = 16
CONTEXT = 256
# The shape of a 135M model, with heads that two and four ranks can share.
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
SMALL = {**SHAPE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 256}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to share the work of a step."""

    name: str
    num_ranks: int
    num_threads: int
    has_memory: bool = True  # shared between the ranks
    has_native_decoder: bool = True


class Ranks:
    """The processes of one way. Each runs as many steps as it is told on its standard input, and waits."""

    def __init__(self, way: Way, model: Path, cache: Path, rows: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        facts = {"model": str(model), "cache": str(cache), "rows": rows, "port": port}
        facts |= {"num_ranks": way.num_ranks, "num_threads": way.num_threads, "native": way.has_native_decoder}
        facts["has_memory"] = way.has_memory
        command = [sys.executable, "-m", "bench.ranks", "--rank"]
        self._processes = [
            subprocess.Popen(
                [*command, json.dumps({**facts, "rank": rank})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None,
                text=True,
            )
            for rank in range(way.num_ranks)
        ]
        for process in self._processes:
            assert self._line(process) == "ready", "a rank ended at its start"

    def step_ms(self, num_steps: int) -> float:
        """Return the median milliseconds of some steps."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{num_steps}\n")
            process.stdin.flush()
        return max(float(self._line(process)) for process in self._processes)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def _line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()


def run_rank(facts: dict[str, Any]) -> None:
    """Be one rank until the standard input ends."""
    torch.set_num_threads(facts["num_threads"])
    cache = Path(facts["cache"])
    parallel = TensorParallel.join(
        rank=facts["rank"],
        world_size=facts["num_ranks"],
        master_addr="127.0.0.1",
        master_port=facts["port"],
        device="cpu",
        native_cache_dir=cache if facts["has_memory"] else None,
    )
    runner = load_model(
        LoadOptions(
            model_dir=Path(facts["model"]),
            dtype="bfloat16",
            block_size=BLOCK_SIZE,
            num_threads=facts["num_threads"],
            native_cache_dir=cache,
            native_decoder=facts["native"],
        ),
        lambda phase, share: None,
        parallel,
    )
    if runner.has_own_threads:
        torch.set_num_threads(1)
    channel: RankChannel = SoloChannel()
    if parallel.world_size > 1:
        channel = GlooChannel() if parallel.entry_room is None else SharedChannel(parallel.entry_room)
    per_row = CONTEXT // BLOCK_SIZE + 1
    runner.allocate_kv(per_row * facts["rows"])
    for row in range(facts["rows"]):
        ids = torch.arange(CONTEXT) % runner.facts.vocab_size
        prompt = SyntheticRow(ids, range(per_row * row, per_row * (row + 1)), 0)
        runner.forward(synthetic_batch([prompt], block_size=BLOCK_SIZE))
    rows = [
        SyntheticRow(torch.tensor([7 + row]), range(per_row * row, per_row * (row + 1)), CONTEXT)
        for row in range(facts["rows"])
    ]
    batch = synthetic_batch(rows, block_size=BLOCK_SIZE)

    def step() -> None:
        if parallel.rank:
            channel.receive()
        else:
            channel.send(RankEntry(step=1))
        output = runner.forward(batch)
        channel.share_tokens(output.logits_NV.argmax(-1).numpy() if output.scan is None else output.scan.best_N)

    for _ in range(3):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        times_ms = []
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            times_ms.append(1e3 * (time.perf_counter() - began))
        print(statistics.median(times_ms), flush=True)
    os._exit(0)


def make_model(folder: Path, shape: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def started(ways: Sequence[Way], model: Path, cache: Path, rows: int) -> Iterator[list[Ranks]]:
    made: list[Ranks] = []
    try:
        for way in ways:
            made.append(Ranks(way, model, cache, rows))
        yield made
    finally:
        for ranks in made:
            ranks.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table with a line for each way and number of rows."""
    parser = argparse.ArgumentParser(prog="python -m bench.ranks", description=__doc__)
    parser.add_argument("--num-ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "textmill" / "native")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the program")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.rank is not None:
        run_rank(json.loads(chosen.rank))
        return
    count = chosen.num_ranks
    ways = [
        Way(f"1 rank, {count} threads", 1, count),
        Way(f"{count} ranks, shared memory", count, 1),
        Way(f"{count} ranks, shared memory, transformers' code", count, 1, has_native_decoder=False),
        Way(f"{count} ranks, gloo", count, 1, has_memory=False),
    ]
    print("| Rows | Way | ms a step, best turn | median turn | speed beside 1 rank (best turns) |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(Path(scratch) / "model", SMALL if chosen.small else SHAPE)
        for rows in chosen.rows:
            with started(ways, model, chosen.cache, rows) as made:
                times_ms: list[list[float]] = [[] for _ in ways]
                for _ in range(chosen.turns):
                    for ranks, found in zip(made, times_ms, strict=True):
                        found.append(ranks.step_ms(chosen.steps))
            for way, found in zip(ways, times_ms, strict=True):
                ratio = min(times_ms[0]) / min(found)
                print(f"| {rows} | {way.name} | {min(found):.2f} | {statistics.median(found):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
