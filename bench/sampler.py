"""Measures the sampler's CPU milliseconds per step, by number of rows and kind of request, as a Markdown table.

With `--num-ranks` the vocabulary is divided, and the time is that of rank 0, without the exchange of the ranks.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from textmill_shard.distributed.index_ranges import even_range
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.engine.wish_upload import build_step_rows
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.sampling.part_sampler import PartSampler
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


def seated(logits: torch.Tensor, params: SamplingParams) -> Sampler:
    sampler = Sampler(num_slots=len(logits), device=logits.device)
    for slot in range(len(logits)):
        sampler.admit(slot, params, SlotText(prompt_ids=np.arange(1000)))
    return sampler


def step_alone(logits: torch.Tensor, params: SamplingParams) -> Callable[[], object]:
    """Return a step of a rank that has whole rows."""
    slots, sampler = np.arange(len(logits)), seated(logits, params)
    return lambda: sampler.sample(logits, build_step_rows(sampler.select(slots), logits.device))


def step_of_rank_0(logits: torch.Tensor, params: SamplingParams, num_ranks: int) -> Callable[[], object]:
    """Return a step of the first of several ranks. The words of the other ranks are there already."""
    slots, sampler = np.arange(len(logits)), seated(logits, params)
    ranges = [even_range(logits.shape[1], TensorParallel(rank, num_ranks)) for rank in range(num_ranks)]
    sizes = tuple(len(ids) for ids in ranges)
    parts = [logits[:, ids.start : ids.stop].contiguous() for ids in ranges]
    sides = [
        PartSampler(sampler, SharedVocabulary(TensorParallel(rank, num_ranks), sizes)) for rank in range(num_ranks)
    ]
    rows = build_step_rows(sampler.select(slots), logits.device)
    words = torch.stack([side.give(part, rows).words_W for side, part in zip(sides, parts, strict=True)])

    def step() -> None:
        rows = build_step_rows(sampler.select(slots), logits.device)
        given = sides[0].give(parts[0], rows)
        sides[0].draft(given, sides[0].join(given, words), rows)

    return step


def step_ms(step: Callable[[], object], repeats: int) -> float:
    """Return the milliseconds of CPU time per step, which other processes disturb less than the time on the wall."""
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
    parser.add_argument("--num-ranks", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| request | " + " | ".join(f"{rows} rows" for rows in arguments.rows) + " |")
    print("|---" * (len(arguments.rows) + 1) + "|")
    for name, params in KINDS.items():
        logits = [peaked_logits(rows, arguments.vocab_size) for rows in arguments.rows]
        steps = [
            step_alone(rows, params) if arguments.num_ranks == 1 else step_of_rank_0(rows, params, arguments.num_ranks)
            for rows in logits
        ]
        print(f"| {name} | " + " | ".join(f"{step_ms(step, arguments.repeats):.2f}" for step in steps) + " |")


if __name__ == "__main__":
    main()
