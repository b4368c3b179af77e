"""The token reader reads in a thread of its own, which has the device of its rank."""

import threading

import pytest
import torch
from textmill_shard.engine.token_reader import HostMark, TokenReader, mark_device

from tests.fakes.fake_gpu import FakeGpu

WAIT_S = 10.0


def test_tokens_come_in_the_order_of_their_steps() -> None:
    reader = TokenReader(torch.device("cpu"))
    read = threading.Semaphore(0)
    began = reader.mark()
    steps = [reader.begin([torch.tensor([step, 7]), torch.tensor([True])], began, read.release) for step in range(3)]
    for step, reading in enumerate(steps):
        tokens, marks = reading.result(WAIT_S).arrays
        assert (tokens.tolist(), marks.tolist()) == ([step, 7], [True])
        assert read.acquire(timeout=WAIT_S)
    reader.close()


def test_the_thread_that_waits_has_the_device_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread has the first GPU by itself, where it would take memory of another rank."""
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda index: seen.append((str(index), threading.current_thread().name))
    )
    monkeypatch.setattr(torch, "empty", lambda *shape, **_: torch.zeros(0, dtype=torch.uint8))
    reader = TokenReader(torch.device("cuda:3"), mark=lambda _: HostMark(0))
    reader.begin([], HostMark(0), lambda: None).result(WAIT_S)
    assert seen == [("cuda:3", "token-reader_0")]
    reader.close()


def test_the_tokens_of_a_gpu_come_in_one_copy_for_which_the_launching_thread_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    with FakeGpu() as gpu:
        device = torch.device("cuda:0")
        reader = TokenReader(device, mark=lambda _: HostMark(0))
        tensors = [torch.empty(3, dtype=dtype, device=device) for dtype in (torch.int64, torch.bool, torch.float32)]
        reading = reader.begin(tensors, HostMark(0), lambda: None)
    assert reading.exception(WAIT_S) is not None  # there are no values
    assert (gpu.counts["copy to the host"], gpu.num_waits) == (1, 0)
    reader.close()


def test_the_thread_that_waits_for_a_gpu_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that asked again and again would hold up the loop that launches."""
    seen: list[dict[str, bool]] = []

    class Event:
        def __init__(self, **how: bool) -> None:
            seen.append(how)

        def record(self) -> None:
            seen.append({"is_recorded": True})

    monkeypatch.setattr(torch.cuda, "Event", Event)
    mark_device(torch.device("cuda:0"))
    assert seen == [{"enable_timing": True, "blocking": True}, {"is_recorded": True}]
