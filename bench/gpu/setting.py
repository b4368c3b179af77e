"""Where a run of the benchmark computes: on a GPU, or with `--dry` on a CPU by Triton's interpreter, in tiny shapes."""

import gc
import statistics
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from textmill_shard.device import pick_device, why_no_gpu
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.model.graph_recorder import CudaGraphRecorder, GraphRecorder, RecordedStep
from textmill_shard.triton_kernels.kernels import TritonKernels
from textmill_shard.triton_kernels.loading import TritonMissing, check_capability, check_compiler

from bench.gpu.messages import CannotRun

NUM_WARM_UPS = 3
REPEATS = 20
OTHER_BYTES = 256 * 1024**2  # several times the cache of a GPU, 50 MB on an H100 and 60 MB on an H200
DRY_MULTIPROCESSORS = 4
DRY_CAPABILITY = (8, 0)
FIXED_TRITON, STRICT_NUMPY = (3, 7), (2, 4)  # since then: no array as a number asked for; none given


@dataclass(frozen=True, slots=True)
class Setting:
    """The device of a run, and how long the run may last."""

    device: torch.device
    is_dry: bool
    ends_at: float  # time.monotonic()
    kernels: TritonKernels
    no_kernels: str = ""  # why Triton cannot run here
    rates: dict[str, float] = field(
        default_factory=dict
    )  # measured: "copy" bytes/s, "product" operations/s, "streams" tokens/s, "decode of N" ms of N rows alone
    _other: list[torch.Tensor] = field(default_factory=list)  # at most one, which is read to displace what was read

    @property
    def left_s(self) -> float:
        return self.ends_at - time.monotonic()

    def judge(self, is_met: bool) -> bool | None:
        """Return whether an aim is met, None in a dry run, whose times say nothing."""
        return None if self.is_dry else is_met

    def check_device(self) -> None:
        """Raise what the device says where it answers no more, as after an illegal access to memory."""
        if not self.is_dry:
            torch.cuda.synchronize(self.device)
            torch.zeros(1, device=self.device).item()

    def free(self) -> None:
        """Give back to the device what the allocator keeps of tensors that are gone."""
        gc.collect()
        if not self.is_dry:
            torch.cuda.empty_cache()

    def graph_recorder(self) -> GraphRecorder:
        """Return what records graphs. A dry run only drives the code around them."""
        return _RunAgain() if self.is_dry else CudaGraphRecorder()

    def synchronize(self) -> None:
        """Wait until the device has nothing to do."""
        if not self.is_dry:
            torch.cuda.synchronize(self.device)

    def time_ms(self, run: Callable[[], object], *, repeats: int | None = None, is_cold: bool = False) -> float:
        """Return the median milliseconds of a run on the clock of the device, in a dry run those of one on the host's.

        Runs follow one another, so that the host is hidden where the host is faster than the device. For the clock of a
        cold run the device's cache has nothing that an earlier run has left there.
        """
        if self.is_dry:
            began_s = time.perf_counter()
            run()
            return (time.perf_counter() - began_s) * 1e3
        for _ in range(NUM_WARM_UPS):
            run()
        marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        for _ in range(repeats or REPEATS):
            if is_cold:
                self._read_other_memory()
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            began.record()
            run()
            ended.record()
            marks.append((began, ended))
        self.synchronize()
        return float(statistics.median(began.elapsed_time(ended) for began, ended in marks))

    def _read_other_memory(self) -> None:
        """Fill the cache of the device by reading, because what is written there would be written back in the run."""
        if not self._other:
            self._other.append(torch.zeros(OTHER_BYTES // 4, device=self.device))
        self._other[0].sum()

    def launch_ms(self, run: Callable[[], object]) -> float:
        """Return the median milliseconds for which the host is busy with a run."""
        taken_s = []
        for _ in range(1 if self.is_dry else REPEATS):
            self.synchronize()
            started = time.perf_counter()
            run()
            taken_s.append(time.perf_counter() - started)
        self.synchronize()
        return statistics.median(taken_s) * 1e3


class _RunAgain:
    """Stands in for a recorder on a CPU: a replay runs the step again, and writes to the same output."""

    def rehearse(self, run: Callable[[], object]) -> None:
        run()

    def record(self, run: Callable[[], ForwardOutput]) -> RecordedStep:
        output = run()

        @torch.inference_mode()
        def replay() -> None:
            output.logits_NV.copy_(run().logits_NV)

        return RecordedStep(replay=replay, output=output)


def make_setting(*, is_dry: bool, left_s: float) -> Setting:
    """Return the setting. Raises CannotRun where there is no GPU, or for a dry run no interpreter that works."""
    ends_at = time.monotonic() + left_s
    if is_dry:
        check_interpreter(version("triton"), version("numpy"))
        kernels = TritonKernels(num_multiprocessors=DRY_MULTIPROCESSORS, capability=DRY_CAPABILITY)
        return Setting(torch.device("cpu"), True, ends_at, kernels)
    if not torch.cuda.is_available():
        raise CannotRun(f"torch sees no GPU ({why_no_gpu()}): --dry runs everything in tiny shapes on the CPU")
    device = torch.device(
        pick_device("cuda", number=0, num_shards=1)
    )  # as a shard does, with float32 products as exact
    num_multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    capability = torch.cuda.get_device_capability(device)
    kernels = TritonKernels(num_multiprocessors=num_multiprocessors, capability=capability)
    return Setting(device, False, ends_at, kernels, _why_no_kernels(*capability))


def _why_no_kernels(major: int, minor: int) -> str:
    """Return why Triton cannot run on a GPU of this compute capability, or ""."""
    try:
        check_capability(major, minor)
        check_compiler(Path(sysconfig.get_path("include")))
    except TritonMissing as missing:
        return str(missing)
    return ""


def check_interpreter(triton: str, numpy: str) -> None:
    """Raise CannotRun for two versions whose interpreter fails at the first loop, with the versions that work."""
    old, strict = (tuple(int(word) for word in said.split(".")[:2]) for said in (triton, numpy))
    if old < FIXED_TRITON and strict >= STRICT_NUMPY:
        raise CannotRun(
            f"--dry needs numpy below 2.4 beside Triton {triton}, whose interpreter takes an array of one number for "
            f"that number, and numpy {numpy} is installed. Without --dry, on a GPU, the two run together"
        )
