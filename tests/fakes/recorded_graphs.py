"""A stand-in for CUDA graphs on a CPU: operations are recorded with their tensors, and a replay runs no other Python.

As in a graph, a replay reads and writes the memory of the recording: numbers that Python has read are fixed, and a
read of a value on the host while recording raises. Kernels count as operations.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.model.graph_recorder import RecordedStep
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_HOST_READS = frozenset({"item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal"})


class HostReadWhileRecording(Exception):
    """The host asked for a value, for which a recording cannot wait."""


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.turns: list[Callable[[], None]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in _HOST_READS:
            raise HostReadWhileRecording(name)
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.note(function, args, kwargs, result)
        return result

    def note(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Let a replay call the function, and write what it returns to the memory of `result`."""
        inputs = {tensor.untyped_storage().data_ptr() for tensor in tree_leaves((args, kwargs)) if _is_full(tensor)}
        fresh = [
            _is_full(tensor) and tensor.untyped_storage().data_ptr() not in inputs for tensor in tree_leaves(result)
        ]

        def turn() -> None:
            again = function(*args, **kwargs)
            for target, source, is_fresh in zip(tree_leaves(result), tree_leaves(again), fresh, strict=True):
                if is_fresh:
                    target.copy_(source)

        self.turns.append(turn)


def _is_full(value: Any) -> bool:
    return torch.is_tensor(value) and value.numel() > 0


_num_capturing = 0
_lock = threading.Lock()
_patch = pytest.MonkeyPatch()


@contextmanager
def _capturing() -> Iterator[None]:
    """Within this context torch says that a recording is under way. Threads may enter at a time."""
    global _num_capturing
    with _lock:
        if not _num_capturing:
            _patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        _num_capturing += 1
    try:
        yield
    finally:
        with _lock:
            _num_capturing -= 1
            if not _num_capturing:
                _patch.undo()


class RecordedKernels:
    """Kernels, or a room of ranks, of which each call is one operation of the recording under way."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self._of_thread = threading.local()  # because ranks that are threads record at a time

    @property
    def recording(self) -> _Recording | None:
        """The recording under way in this thread."""
        found: _Recording | None = getattr(self._of_thread, "recording", None)
        return found

    @recording.setter
    def recording(self, recording: _Recording | None) -> None:
        self._of_thread.recording = recording

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self._kernels, name)
        if not callable(kernel):
            return kernel

        def call(*args: Any, **kwargs: Any) -> Any:
            recording = self.recording
            if recording is None:
                return kernel(*args, **kwargs)
            with torch.utils._python_dispatch._disable_current_modes():
                result = kernel(*args, **kwargs)
            recording.note(kernel, args, kwargs, result)
            return result

        return call


class FakeGraphRecorder:
    """Implements `GraphRecorder`. Counts recordings, replays and their operations."""

    def __init__(self, *kernels: RecordedKernels) -> None:
        self._kernels = kernels
        self.num_operations: list[int] = []
        self.num_replays = 0

    def rehearse(self, run: Callable[[], object]) -> None:
        run()

    def record(self, run: Callable[[], ForwardOutput]) -> RecordedStep:
        run()  # as before a recording of CUDA
        recording = _Recording()
        for kernels in self._kernels:
            kernels.recording = recording
        try:
            with recording, _capturing():
                output = run()
        finally:
            for kernels in self._kernels:
                kernels.recording = None
        self.num_operations.append(len(recording.turns))

        @torch.inference_mode()
        def replay() -> None:
            self.num_replays += 1
            for turn in recording.turns:
                turn()

        return RecordedStep(replay=replay, output=output)
