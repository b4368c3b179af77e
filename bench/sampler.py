"""Measures the sampler's CPU milliseconds per step, by number of rows and kind of request, as a Markdown table."""

import argparse
import time

import numpy as np
import torch
from textmill_shard.engine.batch_builder import build_step_rows
from textmill_shard.sampling.sampler import Sampler
from textmill_shard.sampling.stage import SlotText
from textmill_shard.slots.sampling_params import SamplingParams

KINDS = {
    "greedy": SamplingParams(),
    "greedy, logprobs, top 5": SamplingParams(wants_logprobs=True, top_n_tokens=5),
    "greedy, repetition penalty": SamplingParams(repetition_penalty=1.2),
    "temperature": SamplingParams(do_sample=True, temperature=0.8),
    "top-k 50, top-p": SamplingParams(do_sample=True, top_k=50, top_p=0.9),
    "top-p": SamplingParams(do_sample=True, temperature=0.8, top_p=0.9),
    "typical-p": SamplingParams(do_sample=True, temperature=0.8, typical_p=0.5),
}


def peaked_logits(num_rows: int, vocab_size: int) -> torch.Tensor:
    """Return [rows, V] float32 with a hundred likely ids, so that little mass lies beyond 1,024 candidates."""
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(0)) * 1.5
    logits[:, :: vocab_size // 100] += 9.0
    return logits


def step_ms(logits: torch.Tensor, params: SamplingParams, repeats: int) -> float:
    """Return the milliseconds of CPU time per step, which other processes disturb less than the time on the wall."""
    slots = np.arange(len(logits))
    sampler = Sampler(num_slots=len(slots), device=logits.device)
    for slot in slots.tolist():
        sampler.admit(slot, params, SlotText(prompt_ids=np.arange(1000)))

    def step() -> None:
        sampler.sample(logits, build_step_rows(sampler.select(slots), logits.device))

    step()
    start_s = time.process_time()
    for _ in range(repeats):
        step()
    return (time.process_time() - start_s) / repeats * 1000


def main() -> None:
    """Print one row per kind of request."""
    parser = argparse.ArgumentParser(prog="python -m bench.sampler", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--vocab-size", type=int, default=49152)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| request | " + " | ".join(f"{rows} rows" for rows in arguments.rows) + " |")
    print("|---" * (len(arguments.rows) + 1) + "|")
    for name, params in KINDS.items():
        logits = [peaked_logits(rows, arguments.vocab_size) for rows in arguments.rows]
        print(f"| {name} | " + " | ".join(f"{step_ms(rows, params, arguments.repeats):.2f}" for rows in logits) + " |")


if __name__ == "__main__":
    main()
