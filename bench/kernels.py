"""Times the native decoder alone: ms per step in the shape of SmolLM2-135M, random weights, no server.

    python -m bench.kernels                      # every case, 1 and 2 threads
    python -m bench.kernels --threads 2 --dtype float32 --cases decode-1,decode-8

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
from textmill_shard.fast_decoder import FastDecoder
from textmill_shard.forward_batch import ForwardBatch
from textmill_shard.kv_pool import KvPool, LayerKvSpec
from textmill_shard.native.kernels import load_kernels
from transformers import LlamaConfig, LlamaForCausalLM

BLOCK_SIZE = 16
POOL_BLOCKS = 6144  # as in service: much larger than what one step reads
NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM, VOCAB_SIZE = 30, 3, 64, 49152
# Name -> sequences, tokens stored before the step, tokens of the step.
CASES = {
    "decode-1": (1, 159, 1),
    "decode-8": (8, 159, 1),
    "decode-32": (32, 159, 1),
    "decode-32-long": (32, 1023, 1),
    "mixed": (16, 159, 9),
    "prefill-128": (1, 0, 128),
    "prefill-512": (1, 0, 512),
    "prefill-1024": (1, 0, 1024),
    "cached-1500": (1, 1500, 32),
}


def make_model(dtype: torch.dtype) -> Any:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=9,
        num_key_value_heads=NUM_KV_HEADS,
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
        exponents = torch.arange(0, HEAD_DIM, 2) / HEAD_DIM
        setattr(rotary, name.rpartition(".")[2], 1.0 / 10000.0**exponents)
    return model


def make_batch(num_sequences: int, before: int, count: int, *, num_blocks: int = POOL_BLOCKS) -> ForwardBatch:
    length = before + count
    blocks = -(-length // BLOCK_SIZE)
    tables_RB = torch.randperm(num_blocks)[: num_sequences * blocks].view(num_sequences, blocks)
    position_C = torch.arange(before, length)
    places_RC = tables_RB[:, position_C // BLOCK_SIZE] * BLOCK_SIZE + position_C % BLOCK_SIZE
    starts = torch.arange(num_sequences + 1) * count
    return ForwardBatch(
        input_ids_T=torch.randint(0, VOCAB_SIZE, (num_sequences * count,)),
        position_ids_T=position_C.repeat(num_sequences),
        kv_places_T=places_RC.flatten().contiguous(),
        query_starts=starts.int(),
        context_lens_R=torch.full((num_sequences,), length, dtype=torch.int32),
        block_tables_RB=tables_RB.int(),
        logit_rows_N=starts[1:] - 1,
        max_query_len=count,
        max_context_len=length,
    )


def step_times_ms(decoder: FastDecoder, batch: ForwardBatch, seconds: float) -> Iterator[float]:
    end = time.perf_counter() + seconds
    decoder.forward(batch)
    while time.perf_counter() < end:
        started = time.perf_counter()
        decoder.forward(batch)
        yield (time.perf_counter() - started) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--seconds", type=float, default=3.0, help="per case")
    given = parser.parse_args()
    torch.set_num_threads(1)
    dtype: torch.dtype = getattr(torch, given.dtype)
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "textmill" / "native"
    specs = [LayerKvSpec(NUM_KV_HEADS, HEAD_DIM, HEAD_DIM)] * NUM_LAYERS
    rules = [AttentionRule(scaling=HEAD_DIM**-0.5)] * NUM_LAYERS
    print(f"{'threads':>7} {'case':<16} {'least ms':>9} {'median ms':>10} {'tries':>6}")
    for num_threads in map(int, given.threads.split(",")):
        kernels = load_kernels(cache_folder, num_threads=num_threads)
        if kernels is None:
            raise SystemExit("the native kernels cannot be built here")
        decoder = FastDecoder(make_model(dtype), rules, kernels)
        pool = KvPool(
            specs=specs, num_blocks=POOL_BLOCKS, block_size=BLOCK_SIZE, dtype=dtype, device=torch.device("cpu")
        )
        decoder.bind(pool)
        for tensor in (*pool.keys, *pool.values):
            tensor.normal_()
        for name in given.cases.split(","):
            torch.manual_seed(0)
            times = list(step_times_ms(decoder, make_batch(*CASES[name]), given.seconds))
            print(
                f"{num_threads:>7} {name:<16} {min(times):>9.2f} {statistics.median(times):>10.2f} {len(times):>6}",
                flush=True,
            )
        kernels.close()


if __name__ == "__main__":
    main()
