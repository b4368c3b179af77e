"""The thread of a step loop has the device of its rank, and hands its exception on."""

import threading

import pytest
import torch
from textmill_shard.loop_thread import LoopThread

WAIT_S = 10.0


@pytest.mark.parametrize(("device", "claimed"), [("cuda:3", ["cuda:3"]), ("cpu", [])])
def test_the_loop_runs_on_the_device_of_its_rank(
    device: str, claimed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA keeps a current device for each thread, by which kernels and events find their stream."""
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda index: seen.append((str(index), threading.current_thread().name))
    )
    before_run: list[int] = []
    loop = LoopThread(lambda: before_run.append(len(seen)), device)
    assert loop.done.wait(WAIT_S)
    assert seen == [(name, "step-loop") for name in claimed]
    assert before_run == [len(claimed)]
    assert loop.error is None


def test_the_exception_of_a_loop_is_handed_on() -> None:
    error = RuntimeError("gone")

    def run() -> None:
        raise error

    loop = LoopThread(run, "cpu")
    assert loop.done.wait(WAIT_S)
    assert loop.error is error
