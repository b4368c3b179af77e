"""Compares decode steps of several ranks, each with one thread, with those of one rank with as many threads, on a CPU.

The ranks run the steps of a model with random weights as the server does: rank 0 sends an entry, all ranks compute, and
rank 0 sends the tokens. The ways take turns in one run, and each is judged by its fastest step, because another program
on the cores makes all ways slower, but not equally.

Run with `python -m bench.ranks`, or with `--model-types gpt2 phi3 qwen3_moe --no-native-decoder` for models that run by
transformers' code. The output is a Markdown table.
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
from transformers import AutoConfig, AutoModelForCausalLM

BLOCK_SIZE = 16
REST_S = 0.15  # before a turn, so that a busy system owes the next way its time
CONTEXT = 256
_COMMON = {"vocab_size": 49152, "max_position_embeddings": 2048, "tie_word_embeddings": True}
# Sizes of models of 100 to 150 million parameters, with heads that two and four ranks can share, by the model type.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        **_COMMON,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 2048},
    "opt": {
        **_COMMON,
        "hidden_size": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "word_embed_proj_dim": 768,
    },
    "phi3": {
        **_COMMON,
        "vocab_size": 32064,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
    },
    "qwen3": {
        **_COMMON,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
    "gemma2": {
        **_COMMON,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
    "mixtral": {
        **_COMMON,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        **_COMMON,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "moe_intermediate_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "num_experts": 16,
        "num_experts_per_tok": 4,
    },
}
SMALL = {
    **SHAPES["llama"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "vocab_size": 256,
}


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

    def steps_ms(self, num_steps: int) -> list[float]:
        """Return the milliseconds of so many steps, each of its slowest rank."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{num_steps}\n")
            process.stdin.flush()
        times_ms = [[float(word) for word in self._line(process).split()] for process in self._processes]
        return [max(of_step) for of_step in zip(*times_ms, strict=True)]

    def pin(self) -> None:
        """Give each thread a core of its own, because a busy machine lets threads that wake each other share a core."""
        for rank, process in enumerate(self._processes):
            threads = sorted(map(int, os.listdir(f"/proc/{process.pid}/task")))
            for thread in threads:
                core = rank if len(self._processes) > 1 else int(thread != process.pid)
                os.sched_setaffinity(thread, {core % (os.cpu_count() or 1)})

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
        print(*times_ms, flush=True)
    os._exit(0)


def make_model(folder: Path, model_type: str, shape: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
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
    parser.add_argument("--model-types", nargs="*", default=["llama"], choices=SHAPES, metavar="TYPE")
    parser.add_argument("--num-ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn, of which the first does not count")
    parser.add_argument("--no-native-decoder", action="store_true", help="transformers' code in all ways")
    parser.add_argument("--gloo", action="store_true", help="also ranks that exchange over sockets")
    parser.add_argument("--pin", action="store_true", help="a core for each of two threads")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "textmill" / "native")
    parser.add_argument("--small", action="store_true", help="a tiny llama, to try the program")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.rank is not None:
        run_rank(json.loads(chosen.rank))
        return
    if chosen.pin and chosen.num_ranks != 2:
        parser.error("--pin gives two threads a core each: --num-ranks 2")
    count, has_native = chosen.num_ranks, not chosen.no_native_decoder
    ways = [
        Way(f"1 rank, {count} threads", 1, count, has_native_decoder=has_native),
        Way(f"{count} ranks, shared memory", count, 1, has_native_decoder=has_native),
    ]
    if chosen.gloo:
        ways.append(Way(f"{count} ranks, gloo", count, 1, has_memory=False, has_native_decoder=has_native))
    print("| Model | Rows | Way | ms a step, fastest | median | speed beside 1 rank, fastest | median |")
    print("|---|---|---|---|---|---|---|")
    for model_type in ("llama",) if chosen.small else chosen.model_types:
        with tempfile.TemporaryDirectory() as scratch:
            model = make_model(Path(scratch) / "model", model_type, SMALL if chosen.small else SHAPES[model_type])
            for rows in chosen.rows:
                with started(ways, model, chosen.cache, rows) as made:
                    if chosen.pin:
                        for ranks in made:
                            ranks.pin()
                    times_ms = take_turns(made, chosen.turns, chosen.steps)
                for way, found in zip(ways, times_ms, strict=True):
                    least, median = min(found), statistics.median(found)
                    ratios = f"{min(times_ms[0]) / least:.2f} | {statistics.median(times_ms[0]) / median:.2f}"
                    print(f"| {model_type} | {rows} | {way.name} | {least:.2f} | {median:.2f} | {ratios} |", flush=True)


def take_turns(made: Sequence[Ranks], num_turns: int, num_steps: int) -> list[list[float]]:
    """Return the milliseconds of the steps of each way. The first step of a turn finds another way's weights cached."""
    times_ms: list[list[float]] = [[] for _ in made]
    for _ in range(num_turns):
        for ranks, found in zip(made, times_ms, strict=True):
            time.sleep(REST_S)
            found += ranks.steps_ms(num_steps)[1:]
    return times_ms


if __name__ == "__main__":
    main()
