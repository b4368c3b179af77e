"""Loads the kernels where Triton can run. Nothing else imports triton, and a shard on a CPU does not call this file."""

import os
import shutil
import sysconfig
from pathlib import Path

import torch

from textmill_shard.triton_kernels.interface import DeviceKernels

_COMPILERS = ("gcc", "clang")  # in this order Triton looks for one to build its launchers, behind the variable CC
_FIRST_CAPABILITY = 80  # the oldest GPUs for which Triton compiles: A100, A10, RTX 30
_TRIAL_WIDTH = 128


class TritonMissing(Exception):
    """Triton cannot run here. `str()` ends a sentence that says what was wanted."""


def load_triton_kernels(device: torch.device) -> DeviceKernels:
    """Return the kernels of a GPU, which are compiled as they are first launched. Raises TritonMissing."""
    try:
        from textmill_shard.triton_kernels.kernels import TritonKernels
    except ImportError as error:
        raise TritonMissing(f"the package triton of torch for CUDA cannot be imported: {error}") from error
    check_compiler(Path(sysconfig.get_path("include")))
    capability = torch.cuda.get_device_capability(device)
    check_capability(*capability)
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    kernels = TritonKernels(num_multiprocessors=multiprocessors, capability=capability)
    try_kernel(kernels, device)
    return kernels


def check_capability(major: int, minor: int) -> None:
    """Raises TritonMissing for a GPU that is older than Triton's compiler knows."""
    if 10 * major + minor < _FIRST_CAPABILITY:
        raise TritonMissing(
            f"Triton compiles for GPUs of compute capability {_FIRST_CAPABILITY / 10} and more, and this one has "
            f"{major}.{minor}"
        )


def check_compiler(headers: Path) -> None:
    """Raises TritonMissing without a C compiler, or without the headers of Python in the folder `headers`."""
    if not os.environ.get("CC") and not any(shutil.which(name) for name in _COMPILERS):
        raise TritonMissing(
            f"Triton builds its launchers with a C compiler, and none is there: {' or '.join(_COMPILERS)}, or CC"
        )
    if not (headers / "Python.h").is_file():
        raise TritonMissing(
            f"Triton builds its launchers with the headers of Python, and {headers / 'Python.h'} is not there: install "
            "python3-dev"
        )


def try_kernel(kernels: DeviceKernels, device: torch.device) -> None:
    """Launch a small kernel and wait for it.

    A cache that cannot be written, or a driver older than the code of Triton's compiler, shows here and not in the
    warm-up of the model. Raises TritonMissing.
    """
    try:
        gate_TI = torch.zeros(1, _TRIAL_WIDTH, device=device)
        kernels.gate_up(gate_TI, torch.ones_like(gate_TI), "silu").tolist()
    except Exception as error:  # of the compiler, the cache, the driver or the device
        raise TritonMissing(f"a trial kernel of Triton does not run: {type(error).__name__}: {error}") from error
