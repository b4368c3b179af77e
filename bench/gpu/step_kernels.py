"""Tells in which kernels steps of the large model spend the time of the device, beside the time on paper."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from textmill_shard.model.runner import ModelRunner
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from bench.gpu.report import Row
from bench.gpu.setting import Setting
from bench.gpu.steps import BLOCK_SIZE, batch_of, fill_pool, sizes_of
from bench.gpu_paper import Step as PaperStep
from bench.gpu_paper import costs

MOST_KERNELS = 12
NAME_LENGTH = 60  # names of kernels in C++ have all their template arguments


@dataclass(frozen=True, slots=True)
class KernelTime:
    """All launches of one kernel in a step. On a CPU an operation of torch stands for a kernel."""

    name: str
    launches: int
    us: float


def kernel_rows(setting: Setting, runner: ModelRunner) -> Iterator[Row]:
    """Yield a row for each of the longest kernels of a decode step and of a prefill, behind a row of all of them."""
    sizes = sizes_of(setting)
    num_rows = sizes.decode_rows[-2]
    decode = PaperStep(f"decode of {num_rows} rows", num_rows, 1, sizes.context)
    for step in (decode, PaperStep(f"prefill of {sizes.prefill} tokens", 1, sizes.prefill, sizes.prefill)):
        fill_pool(runner, step.sequences * -(-step.context // BLOCK_SIZE) + 1)
        pieces = [(step.context - step.tokens_each, step.tokens_each)] * step.sequences
        batch = batch_of(setting, sizes, pieces)
        runner.forward(batch)
        setting.synchronize()
        activity = torch.profiler.ProfilerActivity.CPU if setting.is_dry else torch.profiler.ProfilerActivity.CUDA
        with torch.profiler.profile(activities=[activity]) as profile:
            runner.forward(batch)
            setting.synchronize()
        on_paper_us = sum(cost.expected_us for cost in costs(sizes.shape, step))
        yield from _rows(step.name, times_of(profile.key_averages(), is_dry=setting.is_dry), on_paper_us)


def times_of(averages: Sequence[Any], *, is_dry: bool) -> list[KernelTime]:
    """Return the kernels among the averages of a profile, the longest first."""
    wanted = DeviceType.CPU if is_dry else DeviceType.CUDA
    found = [
        KernelTime(entry.key, entry.count, entry.self_cpu_time_total if is_dry else entry.self_device_time_total)
        for entry in averages
        if entry.device_type == wanted
    ]
    return sorted((kernel for kernel in found if kernel.us > 0), key=lambda kernel: -kernel.us)


def _rows(step: str, kernels: Sequence[KernelTime], on_paper_us: float) -> Iterator[Row]:
    whole_us = sum(kernel.us for kernel in kernels)
    launches = sum(kernel.launches for kernel in kernels)
    yield Row(f"{step}, all kernels", {"launches": launches, "us": whole_us, "us on paper": on_paper_us})
    for kernel in kernels[:MOST_KERNELS]:
        name = kernel.name[:NAME_LENGTH].replace("|", "/")
        yield Row(f"{step}: {name}", {"launches": kernel.launches, "us": kernel.us, "share": kernel.us / whole_us})
