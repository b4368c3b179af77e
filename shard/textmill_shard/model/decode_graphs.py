"""CUDA graphs of decode steps: the launches of a step are recorded once for each bucket of rows, and replayed.

A graph reads and writes fixed memory, so that a step is copied into static tensors, which are as long as the bucket.
Rows beyond those of the step are padding in the scratch block. No Python runs at a replay: everything that a layer or a
kernel reads stands in the static tensors.
"""

# T tokens of the step, R rows of the step, one token each, n rows of a bucket, B blocks of the widest table, N = T

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.kv_pool import KvPool

log = logging.getLogger(__name__)

# Largest difference between a replay and the step that was launched anew, relative to the largest logit. Both run one
# sequence of kernels, and a library may choose another kernel for a product while a graph is recorded.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """The launches of a step. `output` is written anew by each `replay`, in the order of the device's work."""

    replay: Callable[[], None]
    output: ForwardOutput


class GraphRecorder(Protocol):
    """Records what a function launches. Later recordings may share the memory of earlier ones."""

    def record(self, run: Callable[[], ForwardOutput]) -> RecordedStep:
        """Raises the exception of work that no graph can hold, as when the host waits for the device."""
        ...


class CudaGraphRecorder:
    """Records with CUDA, into one pool of memory. The largest step comes first, and others fit into its memory."""

    def __init__(self) -> None:
        self._pool: object = None

    def record(self, run: Callable[[], ForwardOutput]) -> RecordedStep:
        # The first run compiles kernels and lets libraries reserve memory, which a recording must not do.
        side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            run()
        torch.cuda.current_stream().wait_stream(side_stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
            output = run()
        self._pool = graph.pool()
        return RecordedStep(replay=graph.replay, output=output)


def default_buckets(max_rows: int) -> tuple[int, ...]:
    """Return numbers of rows up to `max_rows`, close enough that little of a bucket is padding."""
    sizes = (1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_rows, 32))
    return (*(size for size in sizes if size < max_rows), max_rows)


class GraphMismatch(Exception):
    """The replay of a graph has given other logits than the step that was launched anew."""


class DecodeGraphs:
    """The graphs of one model over one KV pool. Only the thread that runs the steps calls this object."""

    def __init__(
        self,
        *,
        forward: Callable[[ForwardBatch], ForwardOutput],
        pool: KvPool,
        buckets: Sequence[int],
        table_width: int,
        vocab_size: int,
        dtype: torch.dtype,
        has_two_rope_tables: bool,
    ) -> None:
        """`table_width` is the number of blocks of the longest request. A bucket is a number of rows."""
        self._forward = forward
        self._pool = pool
        self._buckets = sorted(set(buckets))
        self._vocab_size = vocab_size
        self._dtype = dtype
        self._recorded: dict[int, RecordedStep] = {}
        self._num_filled = 0  # rows of the static tensors that are no padding
        num_rows, device = self._buckets[-1], pool.device
        self._static = ForwardBatch(
            input_ids_T=torch.zeros(num_rows, dtype=torch.int64, device=device),
            position_ids_T=torch.zeros(num_rows, dtype=torch.int64, device=device),
            kv_places_T=torch.full((num_rows,), self._scratch_place, dtype=torch.int64, device=device),
            query_starts=torch.arange(num_rows + 1, dtype=torch.int32, device=device),
            context_lens_R=torch.ones(num_rows, dtype=torch.int32, device=device),
            block_tables_RB=torch.full((num_rows, table_width), pool.num_blocks, dtype=torch.int32, device=device),
            logit_rows_N=torch.arange(num_rows, dtype=torch.int64, device=device),
            max_query_len=1,
            max_context_len=table_width * pool.block_size,
            is_long_rope_T=torch.zeros(num_rows, dtype=torch.bool, device=device) if has_two_rope_tables else None,
        )

    @property
    def _scratch_place(self) -> int:
        return self._pool.num_blocks * self._pool.block_size

    def record(self, recorder: GraphRecorder, on_progress: Callable[[float], None]) -> None:
        """Record every bucket, the largest first, and compare each with the step itself on two different inputs.

        Raises GraphMismatch, or the exception of work that no graph can hold.
        """
        began_s = time.monotonic()
        _fill_with_noise(self._pool, num_blocks=min(self._buckets[-1], self._pool.num_blocks))
        for number, bucket in enumerate(reversed(self._buckets)):
            static = self._rows(bucket)
            self._recorded[bucket] = recorder.record(lambda static=static: self._forward(static))  # type: ignore[misc]
            for seed in (1, 2):
                self._compare(bucket, seed)
            on_progress((number + 1) / len(self._buckets))
        seconds = round(time.monotonic() - began_s, 2)
        log.info("decode steps recorded as graphs", extra={"buckets": self._buckets, "seconds": seconds})

    def replay(self, batch: ForwardBatch) -> ForwardOutput | None:
        """Compute a decode step by its graph. Returns None for a batch that no graph holds."""
        num_rows = len(batch.context_lens_R)
        place = bisect_left(self._buckets, num_rows)
        if place == len(self._buckets) or not self._holds(batch, num_rows):
            return None
        return self._replay(batch, self._buckets[place])

    def _replay(self, batch: ForwardBatch, bucket: int) -> ForwardOutput:
        num_rows = len(batch.context_lens_R)
        self._fill(batch, num_rows)
        recorded = self._recorded[bucket]
        recorded.replay()
        # The next replay writes the memory of the graph anew, and a step may need its logits until its tokens are read.
        return ForwardOutput(logits_NV=recorded.output.logits_NV[:num_rows].clone(), hidden_TD=None)

    def _holds(self, batch: ForwardBatch, num_rows: int) -> bool:
        absent = (batch.adapters_R, batch.encoder_lens_R, batch.media, batch.rope_positions_3T, batch.span_ends_T)
        return (
            batch.max_query_len == 1
            and len(batch.input_ids_T) == len(batch.logit_rows_N) == num_rows
            and all(tensor is None for tensor in absent)
            and (batch.is_long_rope_T is None) == (self._static.is_long_rope_T is None)
            and batch.block_tables_RB.shape[1] <= self._static.block_tables_RB.shape[1]
        )

    def _rows(self, num_rows: int) -> ForwardBatch:
        """Return the first rows of the static tensors, as views."""
        static, is_long = self._static, self._static.is_long_rope_T
        return replace(
            static,
            input_ids_T=static.input_ids_T[:num_rows],
            position_ids_T=static.position_ids_T[:num_rows],
            kv_places_T=static.kv_places_T[:num_rows],
            query_starts=static.query_starts[: num_rows + 1],
            context_lens_R=static.context_lens_R[:num_rows],
            block_tables_RB=static.block_tables_RB[:num_rows],
            logit_rows_N=static.logit_rows_N[:num_rows],
            is_long_rope_T=None if is_long is None else is_long[:num_rows],
        )

    def _fill(self, batch: ForwardBatch, num_rows: int) -> None:
        """Copy a step into the static tensors. Columns of a block table beyond those of the step are never read."""
        rows = self._rows(num_rows)
        rows.input_ids_T.copy_(batch.input_ids_T)
        rows.position_ids_T.copy_(batch.position_ids_T)
        rows.kv_places_T.copy_(batch.kv_places_T)
        rows.context_lens_R.copy_(batch.context_lens_R)
        rows.block_tables_RB[:, : batch.block_tables_RB.shape[1]].copy_(batch.block_tables_RB)
        if rows.is_long_rope_T is not None and batch.is_long_rope_T is not None:
            rows.is_long_rope_T.copy_(batch.is_long_rope_T)
        if self._num_filled > num_rows:
            self._clear(num_rows, self._num_filled)
        self._num_filled = num_rows

    def _clear(self, first: int, end: int) -> None:
        """Make padding of some rows, which then write to the scratch block and read nothing else."""
        static = self._static
        static.input_ids_T[first:end].zero_()
        static.position_ids_T[first:end].zero_()
        static.kv_places_T[first:end].fill_(self._scratch_place)
        static.context_lens_R[first:end].fill_(1)
        static.block_tables_RB[first:end].fill_(self._pool.num_blocks)
        if static.is_long_rope_T is not None:
            static.is_long_rope_T[first:end].zero_()

    def _compare(self, bucket: int, seed: int) -> None:
        """Replay a step of random rows, and launch the rows anew. Raises GraphMismatch."""
        batch = self._trial(max(1, bucket - seed + 1), seed)  # with no padding, and with a row of padding
        expected_NV = self._forward(batch).logits_NV.clone()
        assert self._holds(batch, len(expected_NV)), "the static tensors have room for two blocks"
        difference = (self._replay(batch, bucket).logits_NV - expected_NV).abs().max() / expected_NV.abs().max().clamp(
            min=1e-6
        )
        if not bool(difference <= TOLERANCE[self._dtype]):  # NaN is not at most a number
            raise GraphMismatch(
                f"a step of {len(expected_NV)} rows gives other logits as a graph, by {float(difference):.2g} of the "
                "largest"
            )

    def _trial(self, num_rows: int, seed: int) -> ForwardBatch:
        """Return a decode step in which row r writes to block r, behind the block of the next row for seed 2."""
        block_size, device = self._pool.block_size, self._pool.device
        random = torch.Generator().manual_seed(1000 * seed + num_rows)
        offsets = torch.randint(block_size, (num_rows,), generator=random)
        own = torch.arange(num_rows, dtype=torch.int32)
        tables = own.unsqueeze(-1) if seed == 1 else torch.stack([own.roll(-1), own], dim=1)
        positions = offsets + block_size * (tables.shape[1] - 1)
        is_long = None if self._static.is_long_rope_T is None else (own % 2 == seed % 2).to(device)
        return ForwardBatch(
            input_ids_T=torch.randint(self._vocab_size, (num_rows,), generator=random).to(device),
            position_ids_T=positions.to(device),
            kv_places_T=(own.long() * block_size + offsets).to(device),
            query_starts=torch.arange(num_rows + 1, dtype=torch.int32, device=device),
            context_lens_R=(positions + 1).to(device, torch.int32),
            block_tables_RB=tables.contiguous().to(device),
            logit_rows_N=torch.arange(num_rows, device=device),
            max_query_len=1,
            max_context_len=int(positions.max()) + 1,
            is_long_rope_T=is_long,
        )


@torch.inference_mode()
def _fill_with_noise(pool: KvPool, *, num_blocks: int) -> None:
    """Write numbers to the first blocks and to the scratch block, where anything may have stood before, even NaN."""
    random = torch.Generator(pool.device).manual_seed(0)
    for tensor in (*pool.keys, *pool.values):
        shape = (num_blocks, *tensor.shape[1:])
        tensor[-1] = 0.0
        tensor[:num_blocks] = torch.randn(shape, generator=random, device=pool.device).to(tensor.dtype)
