"""Times steps of transformers' code with and without module swaps: ms of CPU per step, no server.

By default one thread computes. CPU time is measured, because other processes on the machine disturb it less than the
time on the wall.

python -m bench.module_swaps --model M                      # without swaps, with each swap alone, with all swaps
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.runner import ModelRunner
from textmill_shard.options import SWAPS

from bench.kernels import BLOCK_SIZE, make_batch

POOL_BLOCKS = 1024
STORED_TOKENS = 159


def load(folder: Path, *, dtype: str, num_threads: int, disabled: tuple[str, ...]) -> ModelRunner:
    """Return the loaded model, which never runs by the native decoder, because that decoder uses no swaps."""
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "textmill" / "native"
    options = LoadOptions(
        model_dir=folder,
        dtype=dtype,
        block_size=BLOCK_SIZE,
        native_cache_dir=cache_folder,
        num_threads=num_threads,
        native_decoder=False,
        disabled_swaps=disabled,
    )
    torch.set_num_threads(num_threads)
    runner = load_model(options, lambda phase, share: None)
    if runner.has_own_threads:  # as the shard does
        torch.set_num_threads(1)
    runner.allocate_kv(POOL_BLOCKS)
    return runner


def step_ms(runner: ModelRunner, case: tuple[int, int, int], seconds: float) -> tuple[float, float]:
    """Return the least and the median CPU time of a step, in milliseconds."""
    torch.manual_seed(0)
    batch = make_batch((case,), num_blocks=POOL_BLOCKS)
    runner.forward(batch)
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.process_time()
        runner.forward(batch)
        times.append((time.process_time() - started) * 1e3)
    return min(times), statistics.median(times)


def main() -> None:
    """Print one Markdown row per choice of swaps: the least ms, and the median in brackets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face layout")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="per case")
    given = parser.parse_args()
    cases = {f"decode {count}": (count, STORED_TOKENS, 1) for count in (1, 8, 32)} | {"prefill 128": (1, 0, 128)}
    print("| swaps | " + " | ".join(cases) + " |")
    print("|---" * (len(cases) + 1) + "|")
    for enabled in ((), *((name,) for name in SWAPS), SWAPS):
        disabled = tuple(name for name in SWAPS if name not in enabled)
        runner = load(given.model, dtype=given.dtype, num_threads=given.threads, disabled=disabled)
        figures = [step_ms(runner, case, given.seconds) for case in cases.values()]
        name = "all" if enabled == SWAPS else ", ".join(enabled) or "none"
        print(
            f"| {name} | " + " | ".join(f"{least:.1f} ({median:.1f})" for least, median in figures) + " |", flush=True
        )


if __name__ == "__main__":
    main()
