"""Loads the kernels where Triton can run. Nothing else imports triton, and a shard on a CPU does not call this file."""

import shutil

import torch

from textmill_shard.triton_kernels.interface import DeviceKernels

_COMPILERS = ("gcc", "clang", "cc")  # with one of them Triton builds its launchers


class TritonMissing(Exception):
    """Triton cannot run here. `str()` ends a sentence that says what was wanted."""


def load_triton_kernels(device: torch.device) -> DeviceKernels:
    """Return the kernels of a GPU, which are compiled as they are first launched. Raises TritonMissing."""
    try:
        from textmill_shard.triton_kernels.kernels import TritonKernels
    except ImportError as error:
        raise TritonMissing(f"the package triton of torch for CUDA cannot be imported: {error}") from error
    if not any(shutil.which(name) for name in _COMPILERS):
        raise TritonMissing(f"Triton needs a C compiler at run time, and none is installed: {', '.join(_COMPILERS)}")
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return TritonKernels(num_multiprocessors=multiprocessors)
