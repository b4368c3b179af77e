"""CUDA graphs of decode steps: the launches of a step are recorded once for each bucket of rows, and replayed.

A graph reads and writes fixed memory. The packed form of a step (`model/decode_rows.py`) goes to the device in one
copy, and the first kernel of the graph makes of the form the tensors that the layers read, as long as the bucket. Rows
beyond those of the step become padding in the scratch block, and the ids that the slots sampled last come from the
memory where the step before has put them. No Python runs at a replay.
"""

# R rows of the step, one token each, n rows of a bucket, B blocks of the widest table, S slots

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from textmill_shard.model.decode_rows import DecodeRows, packed_length
from textmill_shard.model.forward_batch import ForwardBatch, ForwardOutput
from textmill_shard.model.graph_recorder import GraphRecorder, RecordedStep
from textmill_shard.model.kv_pool import KvPool

log = logging.getLogger(__name__)

# Behind the packed form the arrays of the sampler travel in the same copy: at most two for each of its wishes.
BESIDE_BYTES_PER_ROW = 512
BESIDE_BYTES = 4096


class RowUnpacker(Protocol):
    """The kernel that begins a graph (`triton_kernels/interface.py`)."""

    def unpack_rows(
        self,
        packed: torch.Tensor,
        last_ids_S: torch.Tensor,
        batch: ForwardBatch,
        *,
        scratch_block: int,
        block_size: int,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class GraphSizes:
    """What the memory of graphs must have room for."""

    buckets: Sequence[int]  # numbers of rows
    num_slots: int
    table_width: int  # blocks of the longest request
    has_two_rope_tables: bool = False
    has_rope_positions: bool = False  # rotary positions may differ from positions
    has_adapters: bool = False

    @property
    def num_bytes(self) -> int:
        """The bytes of the packed form and of the tensors that the layers read."""
        most = max(self.buckets)
        unpacked = most * (4 * self.table_width + 5 * 8 + 3 * 4 + 1 + 3 * 8)
        return 4 * packed_length(most, self.table_width) + most * BESIDE_BYTES_PER_ROW + BESIDE_BYTES + unpacked


@dataclass(frozen=True, slots=True)
class SeatedStep:
    """A decode step whose graph can be replayed, as soon as `packed` stands at the beginning of `DecodeGraphs.memory`.

    `slots_R` (int64, on the device) are the slots of the rows from the replay to the next one.
    """

    recorded: RecordedStep
    num_rows: int
    packed: npt.NDArray[np.int32]
    slots_R: torch.Tensor
    keeps_parts: bool = False  # as in the batch


def default_buckets(max_rows: int) -> tuple[int, ...]:
    """Return numbers of rows up to `max_rows`, close enough that little of a bucket is padding."""
    sizes = (1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_rows, 32))
    return (*(size for size in sizes if size < max_rows), max_rows)


class DecodeGraphs:
    """The graphs of one model over one KV pool. Only the thread that runs the steps calls this object.

    Replays follow one another on one stream, and so do the copies of packed forms between them. So a copy finds the
    replay before ended, and neither needs a second memory.
    """

    def __init__(
        self,
        *,
        forward: Callable[[ForwardBatch], ForwardOutput],
        unpacker: RowUnpacker,
        pool: KvPool,
        sizes: GraphSizes,
        address_version: Callable[[], int] = lambda: 0,
    ) -> None:
        """`address_version` gives another number when the adapters have moved (`AdapterHost.address_version`)."""
        self._forward = forward
        self._unpacker = unpacker
        self._pool = pool
        self.sizes = sizes
        self._buckets = sorted(set(sizes.buckets))
        self._address_version = address_version
        self._known_version = address_version()
        # The steps without adapters, and those whose rows may have any adapter or none.
        self._recorded: dict[bool, dict[int, RecordedStep]] = {False: {}, True: {}}
        self._ready: dict[bool, list[int]] = {False: [], True: []}  # buckets that are recorded, rising
        num_rows, device = self._buckets[-1], pool.device
        packed_bytes = 4 * packed_length(num_rows, sizes.table_width)
        beside_bytes = num_rows * BESIDE_BYTES_PER_ROW + BESIDE_BYTES
        self.memory = torch.zeros(packed_bytes + beside_bytes, dtype=torch.uint8, device=device)
        self._packed = self.memory[:packed_bytes].view(torch.int32)
        self.last_ids_S = torch.zeros(sizes.num_slots, dtype=torch.int64, device=device)  # sampled last, by slot

        def numbers(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._slots_n = numbers(num_rows)
        self._logits_NV: torch.Tensor | None = None  # of the first bucket; all graphs write to its first rows
        self._static = ForwardBatch(
            input_ids_T=numbers(num_rows),
            position_ids_T=numbers(num_rows),
            kv_places_T=numbers(num_rows),
            query_starts=torch.arange(num_rows + 1, dtype=torch.int32, device=device),
            context_lens_R=numbers(num_rows, dtype=torch.int32),
            block_tables_RB=numbers(num_rows, sizes.table_width, dtype=torch.int32),
            logit_rows_N=torch.arange(num_rows, dtype=torch.int64, device=device),
            max_query_len=1,
            max_context_len=sizes.table_width * pool.block_size,
            slots_R=self._slots_n,
            adapters_R=numbers(num_rows, dtype=torch.int32) if sizes.has_adapters else None,
            is_long_rope_T=numbers(num_rows, dtype=torch.bool) if sizes.has_two_rope_tables else None,
            rope_positions_3T=numbers(3, num_rows) if sizes.has_rope_positions else None,
        )

    @property
    def buckets(self) -> Sequence[int]:
        """The numbers of rows, rising."""
        return self._buckets

    @property
    def pool(self) -> KvPool:
        return self._pool

    def recordable(self, *, has_adapters: bool = False) -> list[int]:
        """Return the buckets that can be recorded, rising: with adapters none is larger than those without."""
        if not has_adapters:
            return self._buckets
        return [bucket for bucket in self._buckets if bucket <= max(self._ready[False], default=0)]

    def recorded(self, *, has_adapters: bool = False) -> list[int]:
        """Return the buckets that are recorded, rising."""
        return self._ready[has_adapters]

    def rehearse(self, recorder: GraphRecorder, bucket: int, *, has_adapters: bool = False) -> None:
        """Run what `record` runs, and what a comparison of the graph runs beside that, without a recording.

        Both find then, when it matters, that they have the memory for which they ask.
        """
        self._prepare(bucket)
        rows = self._rows(bucket, has_adapters)
        self._run(rows)
        recorder.rehearse(lambda: self._run(rows))

    def record(self, recorder: GraphRecorder, bucket: int, *, has_adapters: bool = False) -> None:
        """Record the steps of one bucket, of rows without adapters or of rows with any adapters.

        Raises the exception of work that no graph can hold.
        """
        self._prepare(bucket)
        recorded = self._recorded[has_adapters]
        recorded[bucket] = recorder.record(lambda: self._run(self._rows(bucket, has_adapters)))
        self._ready[has_adapters] = sorted(recorded)

    def _prepare(self, bucket: int) -> None:
        """Let the next steps write to the scratch block alone, and make room for the logits of so many rows."""
        self._packed.zero_()  # a step without rows: all that is written goes to the scratch block
        if self._logits_NV is None:
            # Memory of their own for the logits of each bucket would stay taken, a gigabyte for 256 rows of a large
            # vocabulary. A rank may have a part of the vocabulary, so that a step tells how wide the logits are.
            self._logits_NV = torch.zeros_like(self._run(self._rows(bucket, False)).logits_NV)

    def forget(self, bucket: int, *, has_adapters: bool) -> None:
        """Hold no steps of one bucket from now on. The first bucket that is recorded fixes the most rows."""
        self._recorded[has_adapters].pop(bucket, None)
        self._ready[has_adapters] = sorted(self._recorded[has_adapters])
        if not self._ready[False]:
            self._logits_NV = None

    def forget_adapters(self) -> None:
        """Hold no steps with adapters from now on."""
        self._recorded[True].clear()
        self._ready[True].clear()

    def seat(self, rows: DecodeRows, *, keeps_parts: bool = False) -> SeatedStep | None:
        """Return how a step is replayed, or None for a step that no graph holds."""
        has_adapters = rows.adapters_R is not None
        ready = self._ready[has_adapters]
        place = bisect_left(ready, rows.num_rows)
        if place == len(ready) or not self._holds(rows):
            return None
        return SeatedStep(
            recorded=self._recorded[has_adapters][ready[place]],
            num_rows=rows.num_rows,
            packed=rows.pack(),
            slots_R=self._slots_n[: rows.num_rows],
            keeps_parts=keeps_parts,
        )

    def replay(self, seated: SeatedStep) -> ForwardOutput:
        """Compute a step whose packed form stands at the beginning of the memory, or is on its way there."""
        seated.recorded.replay()
        # The next replay writes the memory of the graph anew, and a step may need its logits until its tokens are read.
        return ForwardOutput(logits_NV=seated.recorded.output.logits_NV[: seated.num_rows].clone(), hidden_TD=None)

    def launch(self, batch: ForwardBatch) -> ForwardOutput:
        """Compute a step without a graph."""
        return self._forward(batch)

    def run(self, rows: DecodeRows) -> ForwardOutput:
        """Compute a step alone: copy the packed form, and replay. The step must fit a bucket."""
        seated = self.seat(rows)
        assert seated is not None, f"no graph holds {rows.num_rows} rows with tables of {rows.width} blocks"
        self._packed[: len(seated.packed)].copy_(torch.from_numpy(seated.packed))
        return self.replay(seated)

    def _holds(self, rows: DecodeRows) -> bool:
        sizes = self.sizes
        return (
            rows.width <= sizes.table_width
            and (rows.adapters_R is None or self._knows_adapters())
            and (rows.is_long_rope_R is None or sizes.has_two_rope_tables)
            and (rows.rope_deltas_R is None or sizes.has_rope_positions)
        )

    def _knows_adapters(self) -> bool:
        """Whether the adapters lie where the graphs read them. Graphs that do not know their place are let go."""
        if self._address_version() == self._known_version:
            return True
        log.warning(
            "steps with adapters are launched one by one from now on, because so many adapters are loaded that their "
            "tables have moved, and graphs know the old place: fewer adapters, or a start with them"
        )
        self.forget_adapters()
        return False

    def _run(self, rows: ForwardBatch) -> ForwardOutput:
        self._unpacker.unpack_rows(
            self._packed,
            self.last_ids_S,
            rows,
            scratch_block=self._pool.num_blocks,
            block_size=self._pool.block_size,
        )
        return self._forward(rows)

    def _rows(self, num_rows: int, has_adapters: bool) -> ForwardBatch:
        """Return the first rows of the static tensors, as views."""
        static, is_long, rope = self._static, self._static.is_long_rope_T, self._static.rope_positions_3T
        logits_NV, adapters = self._logits_NV, self._static.adapters_R if has_adapters else None
        return replace(
            static,
            input_ids_T=static.input_ids_T[:num_rows],
            position_ids_T=static.position_ids_T[:num_rows],
            kv_places_T=static.kv_places_T[:num_rows],
            query_starts=static.query_starts[: num_rows + 1],
            context_lens_R=static.context_lens_R[:num_rows],
            block_tables_RB=static.block_tables_RB[:num_rows],
            logit_rows_N=static.logit_rows_N[:num_rows],
            slots_R=self._slots_n[:num_rows],
            adapters_R=None if adapters is None else adapters[:num_rows],
            is_long_rope_T=None if is_long is None else is_long[:num_rows],
            rope_positions_3T=None if rope is None else rope[:, :num_rows],
            logits_out_NV=None if logits_NV is None else logits_NV[:num_rows],
        )
