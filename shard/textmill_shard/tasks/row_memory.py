"""How large a batch of rows may be: the tokens that were asked for, or fewer where the memory does not hold them."""

# A forward pass of a trial is measured, and its bytes and seconds are scaled up to the largest batch.

import logging
import time
from dataclasses import dataclass

import numpy as np

from textmill_shard.errors import NotEnoughMemory
from textmill_shard.model.memory import DEFAULT_MEMORY_FRACTIONS
from textmill_shard.model.system_memory import free_memory_bytes, peak_bytes, total_memory_bytes
from textmill_shard.tasks.row_forward import RowLayout
from textmill_shard.tasks.row_runner import RowRunner
from textmill_shard.tasks.rows import HeadName, MaskParams, Params, Row, SpanParams, TokenLabelParams, VectorParams

log = logging.getLogger(__name__)

DEFAULT_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
MIN_BATCH_TOKENS = 64
MAX_TRIAL_TOKENS_ON_CPU = 512
LONGEST_TRIAL_ROW = 512


@dataclass(frozen=True, slots=True)
class RowMemoryOptions:
    """The limits that the operator has set."""

    max_batch_tokens: int | None  # None = DEFAULT_BATCH_TOKENS
    memory_fraction: float | None  # share of the whole memory, for weights and a batch together
    num_replicas: int  # copies of the model that share the memory of a CPU


@dataclass(frozen=True, slots=True)
class RowMemoryPlan:
    """The sizes of the largest batch and of the longest row."""

    max_batch_tokens: int
    max_row_tokens: int  # 0 = unbounded
    batch_s: float  # seconds of the largest batch


def plan_row_memory(
    runner: RowRunner, head: HeadName, options: RowMemoryOptions, *, max_row_tokens: int, weight_bytes: int
) -> RowMemoryPlan:
    """Run a trial batch and decide. Raises NotEnoughMemory where not even a small batch fits."""
    device = runner.forward.device
    asked = options.max_batch_tokens or DEFAULT_BATCH_TOKENS[device.type]
    num_tokens = asked if device.type == "cuda" else min(asked, MAX_TRIAL_TOKENS_ON_CPU)
    length = min(num_tokens, max_row_tokens or LONGEST_TRIAL_ROW, LONGEST_TRIAL_ROW)
    rows = [trial_row(head, length) for _ in range(max(1, num_tokens // length))]
    num_tokens = length * len(rows)
    runner.run(head, rows[:1])  # the first pass also fills caches of the libraries
    began_s = time.monotonic()
    trial_bytes = peak_bytes(device, lambda: runner.run(head, rows))
    trial_s = time.monotonic() - began_s
    # Scores of a padded layout may be tensors of length x length, while flat layers never hold them.
    grows_by_length = runner.forward.layout is not RowLayout.FLAT

    def bytes_of(tokens: int, longest: int) -> int:
        return int(trial_bytes * (tokens / num_tokens) * (max(1.0, longest / length) if grows_by_length else 1.0))

    num_sharing = options.num_replicas if device.type == "cpu" else 1
    fraction = options.memory_fraction or DEFAULT_MEMORY_FRACTIONS[device.type]
    allowed = int(total_memory_bytes(device) * fraction) // num_sharing - weight_bytes
    allowed = min(allowed, free_memory_bytes(device) // num_sharing)
    max_batch_tokens = asked
    while bytes_of(max_batch_tokens, min(max_batch_tokens, max_row_tokens or max_batch_tokens)) > allowed:
        if max_batch_tokens <= MIN_BATCH_TOKENS:
            raise NotEnoughMemory(
                f"--memory-fraction {fraction} leaves {max(allowed, 0)} bytes beside weights of {weight_bytes} bytes, "
                f"a batch of {max_batch_tokens} tokens takes {bytes_of(max_batch_tokens, max_batch_tokens)}"
            )
        max_batch_tokens //= 2
    longest = max_row_tokens
    while longest > max_batch_tokens and bytes_of(longest, longest) > allowed:
        longest //= 2
    if (max_batch_tokens, longest) != (asked, max_row_tokens):
        log.warning(
            "the memory holds batches of %d tokens (%d asked for) and rows of %d tokens (the model reads %d)",
            *(max_batch_tokens, asked, longest, max_row_tokens),
        )
    plan = RowMemoryPlan(
        max_batch_tokens=max_batch_tokens,
        max_row_tokens=longest,
        batch_s=trial_s * max(1.0, max_batch_tokens / num_tokens),
    )
    log.info(
        "memory planned",
        extra={
            "max_batch_tokens": plan.max_batch_tokens,
            "max_row_tokens": plan.max_row_tokens,
            "batch_bytes": bytes_of(max_batch_tokens, min(max_batch_tokens, longest or max_batch_tokens)),
            "batch_s": round(plan.batch_s, 3),
            "weight_bytes": weight_bytes,
        },
    )
    return plan


def trial_row(head: HeadName, num_tokens: int) -> Row:
    """Return a row of id 1 that asks for as much as a row of the head can ask for."""
    return Row(np.ones(num_tokens, dtype=np.int64), None, _params(head, num_tokens))


def _params(head: HeadName, num_tokens: int) -> Params:
    match head:
        case HeadName.VECTORS:
            return VectorParams()
        case HeadName.TOKEN_LABELS:
            return TokenLabelParams(np.ones(num_tokens, dtype=np.bool_))
        case HeadName.MASKS:
            return MaskParams(np.arange(num_tokens), top_k=5, target_ids=np.zeros(0, dtype=np.int64))
        case HeadName.SPANS:
            return SpanParams(np.full(num_tokens, 2, dtype=np.uint8), max_span_tokens=15, max_spans=20)
    return None
