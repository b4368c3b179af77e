"""What the recorder asks of `torch.cuda`, with a stand-in that keeps its rules, and how a recording fails."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.model.graph_recorder import CudaGraphRecorder


class FakeCuda:
    """Stands in for the parts of `torch.cuda` that record graphs, and notes what is asked of them, in order.

    `torch.cuda.graph` itself is torch's. As torch's `CUDAGraph` does, the end of a recording raises where an operation
    of the recording was forbidden, and the allocator then believes the recording to go on, unless `ends_itself`.
    """

    def __init__(self, *, ends_itself: bool = False) -> None:
        self.notes: list[str] = []
        self.recorded_pools: list[tuple[int, int]] = []  # into which the allocator believes a recording to go on
        self.is_spoilt = False  # an operation of the recording under way was forbidden
        self._ends_itself = ends_itself
        self._pools = count(7)
        self._current = ["main"]
        self._num_streams = 0
        self._num_graphs = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, stand_in in (
            ("Stream", self._make_stream),
            ("current_stream", lambda: FakeStream(self, self._current[-1])),
            ("stream", self._use),
            ("CUDAGraph", self._make_graph),
            ("graph_pool_handle", lambda: (0, next(self._pools))),
            ("current_device", lambda: 1),
            ("synchronize", lambda: None),
            ("empty_cache", self.empty_cache),
        ):
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self._end_allocate, raising=False)

    @property
    def current(self) -> str:
        return self._current[-1]

    def empty_cache(self) -> None:
        if self.recorded_pools:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def _make_stream(self) -> "FakeStream":
        self._num_streams += 1
        return FakeStream(self, f"side {self._num_streams}")

    @contextmanager
    def _use(self, stream: "FakeStream") -> Iterator[None]:
        self._current.append(stream.name)
        depth = len(self._current)
        try:
            yield
        finally:
            del self._current[depth - 1 :]  # as torch, which sets the stream of before

    def _make_graph(self) -> Any:
        self._num_graphs += 1
        name = f"graph {self._num_graphs}"

        def begin(pool: tuple[int, int], *, capture_error_mode: str, **_: Any) -> None:
            self.notes.append(f"record {name} on {self.current} into {pool}, {capture_error_mode}")
            self.recorded_pools.append(pool)

        def end() -> None:
            was_spoilt, self.is_spoilt = self.is_spoilt, False
            if self._ends_itself or not was_spoilt:
                self.recorded_pools.pop()
            if was_spoilt:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.notes.append("recorded")

        return FakeGraph(begin, end, partial(self.notes.append, f"replay {name}"))

    def _end_allocate(self, device: int, pool: tuple[int, int]) -> None:
        if pool not in self.recorded_pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        assert device == 1
        self.recorded_pools.remove(pool)


@dataclass(eq=False)
class FakeGraph:
    """A graph of `FakeCuda`."""

    capture_begin: Callable[..., None]
    capture_end: Callable[[], None]
    note: Callable[[], None]

    def replay(self) -> None:
        self.note()


@dataclass(frozen=True)
class FakeStream:
    """A stream of `FakeCuda`."""

    cuda: FakeCuda
    name: str

    def wait_stream(self, other: "FakeStream") -> None:
        self.cuda.notes.append(f"{self.name} waits for {other.name}")


OUTPUT = ForwardOutput(logits_NV=torch.zeros(1, 2), hidden_TD=None)


def test_cuda_records_on_one_stream_behind_a_run_that_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second stream would have a second workspace of cuBLAS, and graphs that share a pool must share the stream."""
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    recorder = CudaGraphRecorder()

    def run() -> ForwardOutput:
        cuda.notes.append(f"run on {cuda.current}")
        return OUTPUT

    first, second = recorder.record(run), recorder.record(run)
    assert first.output is OUTPUT
    second.replay()
    assert cuda.notes == [
        *("side 1 waits for main", "run on side 1", "main waits for side 1"),
        *("record graph 1 on side 1 into (0, 7), thread_local", "run on side 1", "recorded"),
        *("side 1 waits for main", "run on side 1", "main waits for side 1"),
        *("record graph 2 on side 1 into (0, 7), thread_local", "run on side 1", "recorded"),
        "replay graph 2",
    ]
    assert cuda.current == "main"


@pytest.mark.parametrize("ends_itself", [False, True], ids=["torch 2.11", "later torch"])
@pytest.mark.parametrize("is_spoilt", [True, False], ids=["of CUDA", "of Python"])
def test_a_failed_recording_leaves_torch_as_before_and_says_why(
    ends_itself: bool, is_spoilt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else steps would go on launch by launch on another stream, and the first lack of memory would end the shard."""
    cuda = FakeCuda(ends_itself=ends_itself)
    cuda.install(monkeypatch)
    num_runs = iter(range(2))

    def run() -> ForwardOutput:
        if next(num_runs):
            cuda.is_spoilt = is_spoilt
            try:
                raise KeyError("of another matter")
            except KeyError:
                raise RuntimeError("operation not permitted when stream is capturing")  # noqa: B904
        return OUTPUT

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        CudaGraphRecorder().record(run)
    assert cuda.current == "main"
    torch.cuda.empty_cache()


def test_a_run_before_a_recording_that_fails_leaves_torch_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the run has launched still writes to the tensors of the graph, so that the next step waits for that."""
    cuda = FakeCuda()
    cuda.install(monkeypatch)

    def run() -> ForwardOutput:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        CudaGraphRecorder().record(run)
    assert cuda.current == "main"
    assert cuda.notes == ["side 1 waits for main", "main waits for side 1"]


def test_no_graph_is_recorded_into_the_pool_of_graphs_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where another rank has no memory for the first bucket. torch raises for a pool that has ended."""
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    recorder = CudaGraphRecorder()
    recorder.record(lambda: OUTPUT)
    kept = [recorder.record(lambda: OUTPUT), recorder.record(lambda: OUTPUT)]
    del kept[0]
    recorder.record(lambda: OUTPUT)
    assert [note.partition(" into ")[2] for note in cuda.notes if " into " in note] == [
        f"(0, {pool}), thread_local" for pool in (7, 8, 8, 8)
    ]
    kept[0].replay()
