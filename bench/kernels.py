"""Times the native decoder alone: ms per step in the shape of SmolLM2-135M, random weights, no server.

    python -m bench.kernels                      # every case, 1 and 2 threads
    python -m bench.kernels --threads 2 --dtype float32 --cases decode-1,decode-8
    python -m bench.kernels --profile            # and where the time goes, part by part

The least of many tries is the figure for the machine; the median shows how busy it was meanwhile.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from textmill_shard.attention.base import AttentionRule
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.layouts.native_decoder import NativeDecoder
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_pool import KvPool, LayerKvSpec
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.native.kernels import load_kernels
from transformers import LlamaConfig, LlamaForCausalLM

from bench.kernel_profile import DecoderShape, gflop_of_parts, measure_parts, num_pairs, profile_lines

BLOCK_SIZE = 16
POOL_BLOCKS = 6144  # much larger than the part that one step reads, as in service
SHAPE = DecoderShape(num_layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, mlp=1536, vocabulary=49152)
# Each name has groups of equal sequences: (sequences, tokens stored before the step, tokens of the step).
CASES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "decode-1": ((1, 159, 1),),
    "decode-8": ((8, 159, 1),),
    "decode-32": ((32, 159, 1),),
    "decode-32-long": ((32, 1023, 1),),
    "mixed": ((16, 159, 9),),
    "mixed-32": ((31, 159, 1), (1, 0, 128)),
    "prefill-128": ((1, 0, 128),),
    "prefill-4x128": ((4, 0, 128),),
    "prefill-512": ((1, 0, 512),),
    "prefill-1024": ((1, 0, 1024),),
    "cached-1500": ((1, 1500, 32),),
}


def make_model(dtype: torch.dtype) -> Any:
    """Return a llama model of `SHAPE` with random weights."""
    config = LlamaConfig(
        vocab_size=SHAPE.vocabulary,
        hidden_size=SHAPE.hidden,
        intermediate_size=SHAPE.mlp,
        num_hidden_layers=SHAPE.num_layers,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.kv_heads,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    buffers = {name: buffer.shape for name, buffer in model.named_buffers()}
    model = model.to(dtype).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.uniform_(-0.05, 0.05)
    model.tie_weights()
    rotary = model.model.rotary_emb
    for name in buffers:
        exponents = torch.arange(0, SHAPE.head_dim, 2) / SHAPE.head_dim
        setattr(rotary, name.rpartition(".")[2], 1.0 / 10000.0**exponents)
    return model


def make_batch(groups: tuple[tuple[int, int, int], ...], *, num_blocks: int = POOL_BLOCKS) -> ForwardBatch:
    """Return a step over shuffled blocks; each group is (sequences, tokens stored before, tokens of the step)."""
    pieces = [(before, count) for sequences, before, count in groups for _ in range(sequences)]
    widest = -(-max(before + count for before, count in pieces) // BLOCK_SIZE)
    tables = torch.randperm(num_blocks)[: len(pieces) * widest].view(len(pieces), widest).tolist()
    rows = [
        SyntheticRow(ids_n=torch.randint(0, SHAPE.vocabulary, (count,)), blocks=table, start=before)
        for table, (before, count) in zip(tables, pieces, strict=True)
    ]
    return synthetic_batch(rows, block_size=BLOCK_SIZE)


def step_times_ms(decoder: NativeDecoder, batch: ForwardBatch, seconds: float) -> Iterator[float]:
    """Yield the milliseconds of each try, for so many seconds, but for at least three tries on a slow machine too."""
    end = time.perf_counter() + seconds
    decoder.forward(batch)
    tries = 0
    while tries < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        decoder.forward(batch)
        yield (time.perf_counter() - started) * 1e3
        tries += 1


def profile_of(decoder: NativeDecoder, batch: ForwardBatch, name: str, tries: int) -> list[str]:
    """Return a table of the parts of a step of this case."""
    gflop = gflop_of_parts(
        SHAPE,
        num_tokens=batch.input_ids_T.shape[0],
        num_rows=batch.logit_rows_N.shape[0],
        pairs=num_pairs(CASES[name]),
    )
    parts = measure_parts(
        lambda part_ns: decoder.forward(batch, part_ns=part_ns),
        tries=tries,
        num_layers=SHAPE.num_layers,
        gflop=gflop,
    )
    return profile_lines(parts)


def main() -> None:
    """Print one row per number of threads and case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--seconds", type=float, default=3.0, help="per case")
    parser.add_argument("--profile", action="store_true", help="also print the parts of a step")
    given = parser.parse_args()
    torch.set_num_threads(1)
    dtype: torch.dtype = getattr(torch, given.dtype)
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "textmill" / "native"
    specs = [LayerKvSpec(SHAPE.kv_heads, SHAPE.head_dim, SHAPE.head_dim)] * SHAPE.num_layers
    rules = [AttentionRule(scaling=SHAPE.head_dim**-0.5)] * SHAPE.num_layers
    print(f"{'threads':>7} {'case':<16} {'least ms':>9} {'median ms':>10} {'tries':>6}")
    for num_threads in map(int, given.threads.split(",")):
        kernels = load_kernels(cache_folder, num_threads=num_threads)
        if kernels is None:
            raise SystemExit("the native kernels cannot be built here")
        decoder = NativeDecoder(make_model(dtype), rules, kernels, TensorParallel())
        pool = KvPool(
            specs=specs, num_blocks=POOL_BLOCKS, block_size=BLOCK_SIZE, dtype=dtype, device=torch.device("cpu")
        )
        decoder.bind(pool)
        for tensor in (*pool.keys, *pool.values):
            tensor.normal_()
        for name in given.cases.split(","):
            torch.manual_seed(0)
            batch = make_batch(CASES[name])
            times = list(step_times_ms(decoder, batch, given.seconds))
            print(
                f"{num_threads:>7} {name:<16} {min(times):>9.2f} {statistics.median(times):>10.2f} {len(times):>6}",
                flush=True,
            )
            if given.profile:
                print("\n".join(profile_of(decoder, batch, name, len(times))), flush=True)
        kernels.close()


if __name__ == "__main__":
    main()
