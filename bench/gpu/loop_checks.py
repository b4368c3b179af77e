"""Checks on the device that the step loop gives the same tokens with and without overlap, graphs, prefixes and chunks.

Two ranks that share a vocabulary have to draw what one rank draws.

The model has float32 weights, in which products of other shapes differ too little to change a token.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from textmill_shard.model.runner import ModelRunner
from textmill_shard.slots.sampling_params import SamplingParams

from bench.gpu.loop import LoopRun, Request, StepLoop
from bench.gpu.part_checks import check_parts
from bench.gpu.report import Row
from bench.gpu.setting import Setting
from bench.gpu.steps import BLOCK_SIZE, Sizes, fill_pool, make_model, make_runner
from bench.gpu_paper import Shape

SMALL = Sizes(
    Shape(layers=4, hidden=512, heads=8, kv_heads=2, head_dim=64, mlp=1024, vocabulary=4096),
    torch.float32,
    (),
    0,
    700,
    1e-4,
)
DRY_SMALL = replace(
    SMALL, shape=Shape(layers=1, hidden=64, heads=4, kv_heads=2, head_dim=16, mlp=96, vocabulary=320), prefill=35
)
NUM_NEW = 48
SAMPLINGS = (
    SamplingParams(),
    SamplingParams(do_sample=True, temperature=1.0, seed=1),
    SamplingParams(do_sample=True, temperature=1.3, top_p=0.9, repetition_penalty=1.2, seed=2),
    SamplingParams(do_sample=True, temperature=0.8, top_k=20, frequency_penalty=0.5, wants_logprobs=True, seed=3),
)


def check_loop(setting: Setting) -> Iterator[Row]:
    """Yield a row for each way to run the same requests, with the number of requests whose tokens differ."""
    sizes = DRY_SMALL if setting.is_dry else SMALL
    made = make_runner(setting, sizes)
    yield made.row()
    runner = made.runner
    requests = requests_of(setting, sizes)
    num_blocks = sum(-(-(len(request.prompt) + request.max_new) // BLOCK_SIZE) for request in requests) + 4
    most = max(len(request.prompt) for request in requests) + len(requests)

    def run(*, has_overlap: bool, chunk_tokens: int | None = None, of: list[Request] = requests) -> LoopRun:
        with loop_of(runner, num_blocks, most, len(requests), has_overlap=has_overlap) as loop:
            return loop.run(of, chunk_tokens=chunk_tokens)

    fill_pool(runner, num_blocks)
    expected = run(has_overlap=False).tokens
    yield _row("steps", [tokens_of_transformers(make_model(setting, sizes), requests[0])], expected[:1])
    yield _row("overlap", expected, run(has_overlap=True).tokens)
    chunk = 5 if setting.is_dry else 100
    yield _row(f"chunks of {chunk} tokens, overlap", expected, run(has_overlap=True, chunk_tokens=chunk).tokens)
    shared = [replace(requests[0], sampling=sampling) for sampling in SAMPLINGS[: len(requests)]]
    whole = run(has_overlap=False, of=shared).tokens
    found = [shared[0], *(replace(request, shares_of=0) for request in shared[1:])]
    yield _row("blocks of a prefix, overlap", whole, run(has_overlap=True, of=found).tokens)
    with loop_of(runner, num_blocks, most, len(requests), has_overlap=True) as loop:
        again = loop.run_preempted(replace(requests[1], output=()), after=2)
    yield _row("preempted, overlap", [expected[1]], [again])
    shares: list[float] = []
    is_recorded = runner.record_graphs(
        setting.graph_recorder(), (1, 2, len(requests)), shares.append, num_slots=len(requests)
    )
    yield Row("graphs are recorded, and replays give the logits of steps", {"graphs": len(shares)}, is_recorded)
    yield _row("graphs", expected, run(has_overlap=False).tokens)
    yield _row("graphs, overlap", expected, run(has_overlap=True).tokens)
    yield from check_parts(setting, SAMPLINGS)


def tokens_of_transformers(model: Any, request: Request) -> list[int]:
    """Return the greedy tokens of transformers' own loop."""
    ids = torch.tensor([request.prompt], device=model.device)
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),  # else transformers takes the id 0 for padding
        max_new_tokens=request.max_new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    tokens: list[int] = found[0, len(request.prompt) :].tolist()
    return tokens


def loop_of(
    runner: ModelRunner, num_blocks: int, max_step_tokens: int, num_slots: int, *, has_overlap: bool
) -> StepLoop:
    return StepLoop(
        runner,
        num_slots=num_slots,
        num_blocks=num_blocks,
        max_step_tokens=max_step_tokens,
        has_overlap=has_overlap,
    )


def requests_of(setting: Setting, sizes: Sizes) -> list[Request]:
    random = torch.Generator().manual_seed(3)
    num_requests, max_new = (2, 4) if setting.is_dry else (len(SAMPLINGS), NUM_NEW)
    lengths = [sizes.prefill, 3, sizes.prefill // 2, 17][:num_requests]
    return [
        Request(
            prompt=torch.randint(sizes.shape.vocabulary, (length,), generator=random).tolist(),
            max_new=max_new,
            sampling=sampling,
        )
        for length, sampling in zip(lengths, SAMPLINGS, strict=False)
    ]


def _row(name: str, expected: list[list[int]], found: list[list[int]]) -> Row:
    num_other = sum(mine != theirs for mine, theirs in zip(expected, found, strict=True))
    beside = "by transformers" if name == "steps" else "without"
    return Row(f"{name}: tokens as {beside}", {"requests": len(found), "other tokens": num_other}, num_other == 0)
