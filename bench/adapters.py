"""Times steps with LoRA adapters beside the same steps without: percent of the base model's time, no server.

All variants of a case take turns in one process, so that other processes disturb each of them alike. A figure is the
median over the rounds of (time of the variant / time of the base model in that round) - 1.

python -m bench.adapters --model M                  # the native decoder
python -m bench.adapters --model M --no-native      # transformers' code with module swaps
python -m bench.adapters --model M --alone          # beside other work; needs the right to real-time priorities
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.adapter import AdapterWeights, LowRank
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.runner import ModelRunner

from bench.kernels import BLOCK_SIZE, make_batch

POOL_BLOCKS = 1024
STORED_TOKENS = 159
NUM_ADAPTERS = 32
BURST_S, PAUSE_S = 0.35, 0.7
# Rows, stored tokens and new tokens of each row; places of the rows by variant, 0 is the base model.
CASES: Mapping[str, tuple[tuple[int, int, int], Mapping[str, Sequence[int]]]] = {
    "decode 1": ((1, STORED_TOKENS, 1), {"1 adapter": (1,)}),
    "decode 8": (
        (8, STORED_TOKENS, 1),
        {"1 adapter": (1,), "half base": (0, 1), "4 + half base": (0, 1, 0, 2, 0, 3, 0, 4), "8": tuple(range(1, 9))},
    ),
    "decode 32": (
        (32, STORED_TOKENS, 1),
        {
            "1 adapter": (1,),
            "half base": (0, 1),
            "4 + half base": (0, 1, 0, 2, 0, 3, 0, 4),
            "8": tuple(range(1, 9)),
            "every row its own": tuple(range(1, NUM_ADAPTERS + 1)),
        },
    ),
    "prefill 128": ((1, 0, 128), {"1 adapter": (1,)}),
}


def load(folder: Path, *, dtype: str, num_threads: int, is_native: bool) -> ModelRunner:
    """Return the loaded model."""
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "textmill" / "native"
    options = LoadOptions(
        model_dir=folder,
        dtype=dtype,
        block_size=BLOCK_SIZE,
        native_cache_dir=cache_folder,
        num_threads=num_threads,
        native_decoder=is_native,
    )
    torch.set_num_threads(num_threads)
    runner = load_model(options, lambda phase, share: None)
    if runner.has_own_threads:  # as the shard does
        torch.set_num_threads(1)
    runner.allocate_kv(POOL_BLOCKS)
    return runner


def put_adapters(runner: ModelRunner, *, rank: int) -> int:
    """Load random adapters on all linear layers but the head, and return the bytes of one."""
    num_bytes = 0
    for place in range(1, NUM_ADAPTERS + 1):
        generator = torch.Generator().manual_seed(place)
        modules = {}
        for path, part in runner.targets.linears.items():
            if path.endswith("lm_head"):
                continue
            a_rI = torch.randn(rank, part.in_features, generator=generator) * 0.01
            b_Or = torch.randn(part.out_features, rank, generator=generator) * 0.01
            modules[path] = LowRank(a_rI=a_rI.to(runner.dtype), b_Or=b_Or.to(runner.dtype), scale=1.0)
        prepared = runner.adapters.prepare(AdapterWeights(place.to_bytes(16, "big"), modules, rank))
        runner.adapters.put(place, prepared)
        num_bytes = prepared.num_bytes
    return num_bytes


def extra_percents(runner: ModelRunner, case: str, seconds: float, *, is_alone: bool) -> dict[str, float]:
    """Return the extra time of each variant in percent of the base model's time.

    With `is_alone` the steps come in short bursts that no other process can interrupt.
    """
    torch.manual_seed(0)
    shape, variants = CASES[case]
    base = make_batch((shape,), num_blocks=POOL_BLOCKS)
    batches: dict[str, ForwardBatch] = {"base": base, "base again": base}
    for name, places in variants.items():
        places_R = torch.tensor([places[row % len(places)] for row in range(shape[0])], dtype=torch.int32)
        batches[name] = replace(base, adapters_R=places_R)
    for batch in batches.values():
        runner.forward(batch)
    ratios: dict[str, list[float]] = {name: [] for name in batches}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        burst_end = time.perf_counter() + BURST_S
        with _real_time() if is_alone else nullcontext():
            runner.forward(base)  # the first step after a pause finds cold caches
            while time.perf_counter() < burst_end:
                _add_turn(runner, batches, ratios)
        if is_alone:
            time.sleep(PAUSE_S)
    return {name: 100 * (statistics.median(found) - 1) for name, found in ratios.items() if name != "base"}


def _add_turn(runner: ModelRunner, batches: Mapping[str, ForwardBatch], ratios: Mapping[str, list[float]]) -> None:
    """Run each variant once, and note the times relative to the base model's."""
    spent = {}
    for name, batch in batches.items():
        started = time.perf_counter()
        runner.forward(batch)
        spent[name] = time.perf_counter() - started
    for name, time_s in spent.items():
        ratios[name].append(time_s / spent["base"])


@contextmanager
def _real_time() -> Iterator[None]:
    """Give all threads of this process priority over those of other processes."""
    _set_policy(os.SCHED_FIFO, 1)
    try:
        yield
    finally:
        _set_policy(os.SCHED_OTHER, 0)


def _set_policy(policy: int, priority: int) -> None:
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))


def main() -> None:
    """Print one Markdown row for each case and variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face layout")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15.0, help="per case")
    parser.add_argument("--alone", action="store_true", help="short bursts at a real-time priority, with pauses")
    parser.add_argument("--no-native", action="store_true", help="run transformers' code with module swaps")
    given = parser.parse_args()
    runner = load(given.model, dtype=given.dtype, num_threads=given.threads, is_native=not given.no_native)
    num_bytes = put_adapters(runner, rank=given.rank)
    print(f"one adapter takes {num_bytes / 1e6:.1f} MB beside {runner.facts.weight_bytes / 1e6:.0f} MB of weights")
    print("| step | rows | over base |")
    print("|---|---|---|")
    for case in CASES:
        for name, percent in extra_percents(runner, case, given.seconds, is_alone=given.alone).items():
            print(f"| {case} | {name} | {percent:+.1f} % |", flush=True)


if __name__ == "__main__":
    main()
