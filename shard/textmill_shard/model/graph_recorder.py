"""Records what a function launches on a GPU as a CUDA graph, and leaves torch as it was where that fails."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakSet

import torch

from textmill_shard.model.forward_batch import ForwardOutput


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """The launches of a step. `output` is written anew by each `replay`, in the order of the device's work."""

    replay: Callable[[], None]
    output: ForwardOutput


class GraphRecorder(Protocol):
    """Records what a function launches. Later recordings may share the memory of earlier ones."""

    def rehearse(self, run: Callable[[], object]) -> None:
        """Run the function where `record` would run the function, and record nothing."""
        ...

    def record(self, run: Callable[[], ForwardOutput]) -> RecordedStep:
        """Raises the exception of work that no graph can hold, as when the host waits for the device."""
        ...


class CudaGraphRecorder:
    """Records with CUDA, into one pool of memory. The largest step comes first, and others fit into its memory.

    All recordings run on one stream, as torch asks of recordings that share a pool. A library has memory of its own for
    each stream, such as the 32 MiB of cuBLAS, which it takes here once.
    """

    def __init__(self) -> None:
        self._pool: object = None
        # The graphs in the pool, which ends with the last of them. No graph may be recorded into a pool that has ended.
        self._living: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._stream: torch.cuda.Stream | None = None

    def rehearse(self, run: Callable[[], object]) -> None:
        """Run the function on the stream of the recordings, behind and before the work of the current stream."""
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                run()
        finally:
            torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, run: Callable[[], ForwardOutput]) -> RecordedStep:
        """Record, and leave stream and allocator of torch as they were, also where the recording fails."""
        # The first run compiles kernels and lets libraries reserve memory, which a recording must not do.
        self.rehearse(run)
        if not self._living:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        reason: Exception | None = None
        # Where a recording fails, its end raises too, and torch then stays on the stream of the recording by itself.
        with torch.cuda.stream(self._stream):
            try:
                # Other threads may do what a recording forbids: NCCL watches its work in a thread of its own.
                with torch.cuda.graph(
                    graph,
                    pool=self._pool,  # type: ignore[arg-type]
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ):
                    try:
                        output = run()
                    except Exception as error:
                        reason = error
                        raise
            except Exception as error:
                _forget_recording(self._pool)
                raise reason or error from None
        self._living.add(graph)
        return RecordedStep(replay=graph.replay, output=output)


def _forget_recording(pool: object) -> None:
    """Let torch's allocator know that the recording into a pool is over.

    The allocator of torch 2.11 believes a failed recording to go on for ever: `torch.cuda.empty_cache` then raises, and
    memory that runs out is not looked for among the cached blocks (pytorch, pull request 180395).
    """
    with contextlib.suppress(RuntimeError):  # the allocator knows already
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)  # type: ignore[arg-type]
