"""Where a run of the benchmark computes: on a GPU, or with `--dry` on a CPU by Triton's interpreter, in tiny shapes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version

import torch
from textmill_shard.model.decode_graphs import CudaGraphRecorder, GraphRecorder, RecordedStep
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.triton_kernels.kernels import TritonKernels

NUM_WARM_UPS = 3
DRY_MULTIPROCESSORS = 4
FIXED_TRITON, STRICT_NUMPY = (3, 7), (2, 4)  # since then: no array as a number asked for; none given


@dataclass(frozen=True, slots=True)
class Setting:
    """The device of a run, and how long the run may last."""

    device: torch.device
    is_dry: bool
    ends_at: float  # time.monotonic()
    kernels: TritonKernels
    rates: dict[str, float] = field(
        default_factory=dict
    )  # measured: "copy" bytes/s, "product" operations/s, "streams" tokens/s

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

    def graph_recorder(self) -> GraphRecorder:
        """Return what records graphs. A dry run only drives the code around them."""
        return _RunAgain() if self.is_dry else CudaGraphRecorder()

    def synchronize(self) -> None:
        """Wait until the device has nothing to do."""
        if not self.is_dry:
            torch.cuda.synchronize(self.device)

    def time_ms(self, run: Callable[[], object], *, repeats: int = 20) -> float:
        """Return the least milliseconds of a run, the device's work included."""
        if self.is_dry:
            repeats = 1
        for _ in range(1 if self.is_dry else NUM_WARM_UPS):
            run()
        best_s = float("inf")
        for _ in range(repeats):
            self.synchronize()
            started = time.perf_counter()
            run()
            self.synchronize()
            best_s = min(best_s, time.perf_counter() - started)
        return best_s * 1e3

    def launch_ms(self, run: Callable[[], object], *, repeats: int = 20) -> float:
        """Return the least milliseconds for which the host is busy with a run."""
        best_s = float("inf")
        for _ in range(1 if self.is_dry else repeats):
            self.synchronize()
            started = time.perf_counter()
            run()
            best_s = min(best_s, time.perf_counter() - started)
        self.synchronize()
        return best_s * 1e3


class _RunAgain:
    """Stands in for a recorder on a CPU: a replay runs the step again, and writes to the same output."""

    def record(self, run: Callable[[], ForwardOutput]) -> RecordedStep:
        output = run()

        @torch.inference_mode()
        def replay() -> None:
            output.logits_NV.copy_(run().logits_NV)

        return RecordedStep(replay=replay, output=output)


def make_setting(*, is_dry: bool, left_s: float) -> Setting:
    """Return the setting. Raises RuntimeError where there is no GPU, or for a dry run no interpreter that works."""
    ends_at = time.monotonic() + left_s
    if is_dry:
        check_interpreter(version("triton"), version("numpy"))
        return Setting(torch.device("cpu"), True, ends_at, TritonKernels(num_multiprocessors=DRY_MULTIPROCESSORS))
    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU: --dry runs everything in tiny shapes on the CPU")
    device = torch.device("cuda:0")
    num_multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return Setting(device, False, ends_at, TritonKernels(num_multiprocessors=num_multiprocessors))


def check_interpreter(triton: str, numpy: str) -> None:
    """Raise RuntimeError for two versions whose interpreter fails at the first loop, with the versions that work."""
    old, strict = (tuple(int(word) for word in said.split(".")[:2]) for said in (triton, numpy))
    if old < FIXED_TRITON and strict >= STRICT_NUMPY:
        raise RuntimeError(
            f"--dry needs numpy below 2.4 beside Triton {triton}, whose interpreter takes an array of one number for "
            f"that number, and numpy {numpy} is installed. Without --dry, on a GPU, the two run together"
        )
