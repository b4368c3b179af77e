"""Runs steps of many sizes before the first request, because a GPU compiles a kernel at its first launch.

The attention of a step has other kernels for chunks than for single tokens, and other ones for each number of parts
into which few tokens cut their contexts. All of these depend on the size of the step (`triton_kernels/tiles.py`).
"""

# n tokens of a row

import logging
import time
from collections.abc import Iterator

import torch

from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch

log = logging.getLogger(__name__)


def compile_steps(runner: ModelRunner, *, max_step_tokens: int, num_slots: int) -> None:
    """Run a chunk of each power of two of tokens, and as many decode rows, up to the largest step.

    The steps write to the scratch block of a pool that has no other block.
    """
    began_s = time.monotonic()
    num_steps = 0
    for batch in _steps(runner, max_step_tokens=max_step_tokens, num_slots=num_slots):
        runner.forward(batch)
        num_steps += 1
    if runner.device.type == "cuda":
        torch.cuda.synchronize(runner.device)
    log.info(
        "kernels of the steps are ready",
        extra={"num_steps": num_steps, "seconds": round(time.monotonic() - began_s, 2)},
    )


def _steps(runner: ModelRunner, *, max_step_tokens: int, num_slots: int) -> Iterator[ForwardBatch]:
    facts, media = runner.facts, runner.media
    has_spans = media is not None and (media.uncut_spans or media.is_prompt_span)
    longest = min(max_step_tokens, facts.max_model_tokens or max_step_tokens)
    for num_tokens in _powers_of_two(longest):
        yield _batch(runner, [_row(num_tokens, block_size=facts.block_size)])
        if has_spans:  # a step in which an image is computed
            yield _batch(runner, [_row(num_tokens, block_size=facts.block_size, has_spans=True)])
    for num_rows in _powers_of_two(num_slots)[1:]:
        yield _batch(runner, [_row(1, block_size=facts.block_size)] * num_rows)


def _powers_of_two(largest: int) -> list[int]:
    """Return 1, 2, 4 ... and `largest`."""
    return sorted({*(1 << bit for bit in range(largest.bit_length())), largest})


def _row(num_tokens: int, *, block_size: int, has_spans: bool = False) -> SyntheticRow:
    return SyntheticRow(
        ids_n=torch.zeros(num_tokens, dtype=torch.int64),
        blocks=[0] * -(-num_tokens // block_size),
        span_ends_n=torch.zeros(num_tokens, dtype=torch.int32) if has_spans else None,
    )


def _batch(runner: ModelRunner, rows: list[SyntheticRow]) -> ForwardBatch:
    return synthetic_batch(rows, block_size=runner.facts.block_size, device=runner.device)
