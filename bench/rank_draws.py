"""Compares two ways in which ranks sample decode steps: they send candidates, or they lay whole rows together.

Candidates are the way of the server. With whole rows rank 0 samples alone. The model is the llama of `bench/ranks.py`,
whose ranks share memory and have one thread each. The ways take turns, and each is judged by its fastest turn.

Run with `python -m bench.rank_draws`. The output is a Markdown table.
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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.engine.part_desk import PartDesk
from textmill_shard.engine.part_sampling import PartSampling
from textmill_shard.engine.rank_channel import GlooChannel, RankChannel, RankEntry
from textmill_shard.engine.row_sampling import RowSampler
from textmill_shard.engine.shared_channel import SharedChannel
from textmill_shard.engine.upload import Upload, to_host
from textmill_shard.grammar.slots import GrammarSlots
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.sampling.part_sampler import PartSampler
from textmill_shard.sampling.row_scan import NativeRowScanner
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.sampling_params import SamplingParams
from textmill_shard.slots.slot_table import SlotTable

from bench.ranks import BLOCK_SIZE, CONTEXT, REST_S, SHAPES, SMALL, make_model

# The logits of random weights lie close together. Divided by 0.1 they are as uneven as those of a language model.
TEMPERATURE = 0.1
REQUESTS = {
    "temperature": SamplingParams(do_sample=True, temperature=TEMPERATURE),
    "top-p": SamplingParams(do_sample=True, temperature=TEMPERATURE, top_p=0.95),
    "top-k of 40, top-p": SamplingParams(do_sample=True, temperature=TEMPERATURE, top_k=40, top_p=0.95),
    "penalties, top-p": SamplingParams(do_sample=True, temperature=TEMPERATURE, top_p=0.95, repetition_penalty=1.1),
}
WAYS = ("whole rows", "candidates")


class CountingParallel(TensorParallel):
    """Exchanges tensors as `TensorParallel` does, and notes the bytes that this rank gives to be gathered."""

    sent_bytes = 0

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        CountingParallel.sent_bytes += tensor.nbytes
        return TensorParallel.gather(self, tensor)


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank, with its part of the model."""

    runner: ModelRunner
    channel: RankChannel
    parallel: TensorParallel


class StepSampling:
    """The steps of one way and one kind of request. All ranks make equal calls."""

    def __init__(self, rank: Rank, batch: ForwardBatch, params: SamplingParams, way: str) -> None:
        runner, channel, vocabulary = rank.runner, rank.channel, rank.runner.vocabulary
        assert vocabulary is not None, "the ranks of a llama share the vocabulary"
        self._rank = rank
        self._batch = replace(batch, keeps_parts=way == "candidates")
        num_rows = len(batch.logit_rows_N)
        self._slots = np.arange(num_rows)
        self._table = SlotTable(num_slots=num_rows, block_size=1, num_blocks=1)
        scanner = None if runner.kernels is None else NativeRowScanner(runner.kernels)
        sampler = Sampler(num_slots=num_rows, device=runner.device, scanner=scanner)
        for slot in range(num_rows):
            text = SlotText((np.arange(CONTEXT, dtype=np.int64) + slot) % runner.facts.vocab_size)
            sampler.admit(slot, replace(params, seed=slot), text)
        rules = FinishRules(())
        parts = PartSampler(sampler, vocabulary) if self._batch.keeps_parts else None
        self._leader: RowSampler | None = None
        self._follower: PartSampling | None = None
        if rank.parallel.rank == 0:
            desk = None if parts is None else PartDesk(parts, channel)
            self._leader = RowSampler(
                sampler=sampler, finish_rules=rules, grammars=GrammarSlots(None, rules), parts=desk
            )
        elif parts is not None:
            self._follower = PartSampling(
                sampler=sampler, parts=parts, finish_rules=rules, channel=channel, vocab_size=runner.facts.vocab_size
            )

    def step(self) -> None:
        """Compute a step, sample its rows and share the tokens."""
        channel, runner = self._rank.channel, self._rank.runner
        if self._rank.parallel.rank:
            channel.receive()
        else:
            channel.send(RankEntry(step=1))
        upload = Upload(runner.device)
        sampling = self._leader or self._follower
        if sampling is not None:
            sampling.prepare(self._slots, upload)
        upload.send()
        output = runner.forward(self._batch)
        if self._leader is not None:
            launched = self._leader.launch(self._table, self._slots, output)
            tensors = launched.tensors
            drawn = self._leader.finish(launched, to_host(*tensors) if tensors else [], is_awaited=True)
            self._leader.note(launched)
            channel.share_tokens(drawn.tokens_N)
            return
        if self._follower is not None and self._follower.give(output).may_look:
            self._follower.await_look()
        tokens_N = channel.share_tokens(self._slots.copy())
        if self._follower is not None:
            self._follower.note(torch.from_numpy(tokens_N))


def join(facts: dict[str, Any]) -> Rank:
    torch.set_num_threads(1)
    cache = Path(facts["cache"])
    joined = TensorParallel.join(
        rank=facts["rank"],
        world_size=facts["num_ranks"],
        master_addr="127.0.0.1",
        master_port=facts["port"],
        device="cpu",
        native_cache_dir=cache,
    )
    parallel = CountingParallel(joined.rank, joined.world_size, joined.room, joined.entry_room)
    options = LoadOptions(
        model_dir=Path(facts["model"]), dtype="bfloat16", block_size=BLOCK_SIZE, num_threads=1, native_cache_dir=cache
    )
    runner = load_model(options, lambda phase, share: None, parallel)
    channel = GlooChannel() if parallel.entry_room is None else SharedChannel(parallel.entry_room)
    return Rank(runner, channel, parallel)


def make_batch(runner: ModelRunner, num_rows: int) -> ForwardBatch:
    """Return a decode step of so many rows behind stored contexts."""
    per_row = CONTEXT // BLOCK_SIZE + 1
    runner.allocate_kv(per_row * num_rows)
    blocks = [range(per_row * row, per_row * (row + 1)) for row in range(num_rows)]
    for own in blocks:
        ids = torch.arange(CONTEXT) % runner.facts.vocab_size
        runner.forward(synthetic_batch([SyntheticRow(ids, own, 0)], block_size=BLOCK_SIZE))
    rows = [SyntheticRow(torch.tensor([7 + row]), own, CONTEXT) for row, own in enumerate(blocks)]
    return synthetic_batch(rows, block_size=BLOCK_SIZE)


def measure(facts: dict[str, Any]) -> None:
    """Be one rank. Rank 0 prints a line for each number of rows and kind of request."""
    rank = join(facts)
    for num_rows in facts["rows"]:
        batch = make_batch(rank.runner, num_rows)
        for name in facts["requests"]:
            ways = [StepSampling(rank, batch, REQUESTS[name], way) for way in WAYS]
            times_ms: list[list[float]] = [[] for _ in ways]
            sent_bytes = [0 for _ in ways]
            for turn in range(facts["turns"] + 1):
                for place, way in enumerate(ways):
                    CountingParallel.sent_bytes, taken_ms = 0, []
                    time.sleep(REST_S)
                    for _ in range(facts["steps"]):
                        began = time.perf_counter()
                        way.step()
                        taken_ms.append(1e3 * (time.perf_counter() - began))
                    if turn:  # the first turn is for warming up
                        times_ms[place].append(statistics.median(taken_ms))
                        sent_bytes[place] += CountingParallel.sent_bytes
            if rank.parallel.rank == 0:
                best, sent = (
                    [min(times) for times in times_ms],
                    [number / (facts["turns"] * facts["steps"]) for number in sent_bytes],
                )
                print(
                    f"| {num_rows} | {name} | {sent[0]:,.0f} | {sent[1]:,.0f} | {sent[1] / sent[0]:.3f} "
                    f"| {best[0]:.2f} | {best[1]:.2f} | {best[1] / best[0]:.2f} |",
                    flush=True,
                )


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the ranks, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.rank_draws", description=__doc__)
    parser.add_argument("--num-ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--requests", nargs="*", default=list(REQUESTS), choices=REQUESTS)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "textmill" / "native")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the program")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.rank is not None:
        measure(json.loads(chosen.rank))
        sys.stdout.flush()
        os._exit(0)
    print("| Rows | Request | bytes of a rank, whole rows | candidates | ratio | ms, whole rows | candidates | ratio |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        model = make_model(Path(scratch) / "model", "llama", SMALL if chosen.small else SHAPES["llama"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        facts = {"model": str(model), "cache": str(chosen.cache), "port": port, "num_ranks": chosen.num_ranks}
        facts |= {"rows": chosen.rows, "requests": chosen.requests, "turns": chosen.turns, "steps": chosen.steps}
        processes = []
        for rank in range(chosen.num_ranks):
            command = [sys.executable, "-m", "bench.rank_draws", "--rank", json.dumps({**facts, "rank": rank})]
            processes.append(subprocess.Popen(command))
            stack.callback(processes[-1].kill)
        for process in processes:
            if process.wait():
                sys.exit(1)


if __name__ == "__main__":
    main()
