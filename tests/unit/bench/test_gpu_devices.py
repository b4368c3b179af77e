"""Each part of the benchmark of a GPU runs on a GPU whose values a CPU computes, and mixes no devices.

The sizes are those of a dry run, and everything else is as on a GPU: events, memory, the parts' own branches. Plain
torch stands in for the kernels, and a recorder that runs steps again for that of CUDA.
"""

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import file_check, kernel_checks, loop_checks, part_checks, rates, start_check, steps, streams
from bench.gpu import parts as parts_file
from bench.gpu import setting as setting_file
from bench.gpu.messages import Job
from bench.gpu.parts import Bench
from bench.gpu.report import Row
from bench.gpu.setting import Setting
from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.fakes.valued_gpu import GPU, GpuMode, valued_gpu

MEMORY_BYTES, TAKEN_BYTES = 1 << 27, 1 << 12
KERNELS_OF_A_LANE = 5
SMALL = {
    (steps, "REAL"): steps.DRY,
    (streams, "LOAD"): streams.DRY_LOAD,
    (start_check, "STEP_TOKENS"): start_check.DRY_STEP_TOKENS,
    (loop_checks, "SMALL"): loop_checks.DRY_SMALL,
    (file_check, "SMALL"): loop_checks.DRY_SMALL,
    (loop_checks, "NUM_NEW"): 6,
    (part_checks, "VOCABULARY"): part_checks.DRY_VOCABULARY,
    (rates, "BYTES_COPIED"): 1 << 10,
    (rates, "WIDTH"): 64,
    (rates, "WAKE_S"): 0.0,
    (setting_file, "OTHER_BYTES"): 1 << 10,
    (setting_file, "REPEATS"): 1,
}


class HostEvent:
    """A mark of a GPU whose work is done as soon as it is launched."""

    def __init__(self, *, enable_timing: bool, blocking: bool = False) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at_s = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once."""

    def elapsed_time(self, later: "HostEvent") -> float:
        return (later.at_s - self.at_s) * 1e3


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    properties = SimpleNamespace(
        name="a GPU with values", major=9, minor=0, multi_processor_count=132, total_memory=MEMORY_BYTES
    )
    monkeypatch.setattr(torch.cuda, "Event", HostEvent)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (MEMORY_BYTES - TAKEN_BYTES, MEMORY_BYTES))
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _: TAKEN_BYTES)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for (module, name), small in SMALL.items():
        monkeypatch.setattr(module, name, small)
    monkeypatch.setattr(kernel_checks, "TritonKernels", lambda **_: PlainKernels())
    monkeypatch.setattr(Setting, "graph_recorder", lambda _: setting_file._RunAgain())
    load_by(monkeypatch, PlainKernels())
    run_thread = threading.Thread.run

    def run_on_gpu(thread: threading.Thread) -> None:
        with GpuMode():
            run_thread(thread)

    monkeypatch.setattr(threading.Thread, "run", run_on_gpu)
    setting = Setting(GPU, False, time.monotonic() + 600, PlainKernels())  # type: ignore[arg-type]
    monkeypatch.setattr(parts_file, "make_setting", lambda **_: setting)
    torch.set_num_threads(1)
    of = len(kernel_checks._checked_variants(setting)) // KERNELS_OF_A_LANE
    with valued_gpu(monkeypatch):
        yield parts_file.start(Job(table="", is_dry=False, left_s=600.0, parts=(), trace_file="", number=0, of=of))


def rows_of(bench: Bench, *names: str) -> list[Row]:
    parts = bench.parts(lambda item: None)
    return [row for name in names for row in parts[name]()]


@pytest.mark.slow  # a whole lane of kernels, step loops and two models of files: 5 to 20 s, by the machine's load
def test_kernels_tokens_and_a_model_of_files_are_compared_on_one_device(bench: Bench) -> None:
    rows = rows_of(bench, "Kernels beside plain torch", "Tokens of the step loop", "A model of files")
    assert len(rows) > KERNELS_OF_A_LANE + 10
    assert [row for row in rows if not row.is_fine] == []


def test_steps_streams_starts_and_extras_are_timed_on_one_device(bench: Bench) -> None:
    rows = rows_of(
        bench,
        "Machine",
        "Equal logits of a llama of random weights",
        "Steps of a llama of random weights",
        "Streams",
        "What a start measures",
        "What requests and flags add to a step",
    )
    assert [row for row in rows if row.is_fine is False] == []
    judged = {row.name for row in rows if row.meets_aim is not None}
    assert judged == {
        *(f"decode of {num_rows} rows, 20 context" for num_rows in (1, 2)),
        "prefill of 33 tokens",
        "2 streams, overlap, graphs",
    }
    [taken] = [row for row in rows if row.name == "2 streams behind the start"]
    assert taken.is_fine
    assert taken.numbers["planned, GiB"] == pytest.approx(0.8 * MEMORY_BYTES / 2**30)
    assert {"copy", "product", "streams"} <= bench.rates.keys()


def test_requests_that_take_more_memory_than_the_plan_allows_are_a_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: int(0.81 * MEMORY_BYTES))
    row = start_check._peak_row(bench._setting, "streams", 6, MEMORY_BYTES)
    assert row.is_fine is False
