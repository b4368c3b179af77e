"""Chooses the attention backend of a model, once, before the model is built."""

import logging
from importlib.metadata import PackageNotFoundError, version

import torch

from textmill_shard.attention.base import AttentionBackend
from textmill_shard.attention.cpu import CpuAttention
from textmill_shard.attention.flash import load_flash
from textmill_shard.attention.reference import ReferenceAttention
from textmill_shard.errors import BackendRefused
from textmill_shard.model.kv_scales import KV_TYPES
from textmill_shard.native.kernels import Kernels
from textmill_shard.triton_kernels.flash_backend import FlashBesideKernels
from textmill_shard.triton_kernels.loading import TritonMissing, load_triton_kernels
from textmill_shard.triton_kernels.paged_backend import PagedAttention
from textmill_shard.triton_kernels.variants import FIRST_WITH_E4M3

log = logging.getLogger(__name__)

# Before, Triton turned numbers of fp8_e5m2 into bfloat16 by an instruction that GPUs have since this capability.
FIRST_TRITON_WITH_E5M2 = (3, 7)
FIRST_WITH_PRODUCTS_OF_BF16 = 90


def choose_attention(
    asked: str | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    block_size: int,
    kernels: Kernels | None,
    kv_type: str = "auto",
) -> AttentionBackend:
    """Return the backend that `--attention-backend` asks for, or that fits the device where `asked` is None.

    `kv_type` is that of `--kv-cache-dtype`. Raises BackendRefused with a sentence for a backend that cannot be had.
    """
    has_8_bits = kv_type in KV_TYPES
    if has_8_bits and device.type == "cpu":
        log.warning(
            "keys and values of 8 bits are read by plain torch on a CPU, which saves memory and is slow",
            extra={"kv_cache_dtype": kv_type},
        )
    if asked == "reference":
        return ReferenceAttention()
    if device.type != "cuda":
        if asked is not None:
            raise BackendRefused(
                f"--attention-backend {asked} computes on a GPU, and the device is {device.type}: leave the flag out"
            )
        return ReferenceAttention() if kernels is None or has_8_bits else CpuAttention(kernels)
    if asked == "flash" and has_8_bits:
        raise BackendRefused(
            f"--attention-backend flash reads keys and values in the type of the weights, and --kv-cache-dtype is "
            f"{kv_type}: --attention-backend triton, or leave --kv-cache-dtype out"
        )
    if asked == "flash":
        return _load_flash(device, dtype=dtype, block_size=block_size)
    if KV_TYPES.get(kv_type) is torch.float8_e4m3fn:
        _check_e4m3(device)
    if KV_TYPES.get(kv_type) is torch.float8_e5m2 and dtype is torch.bfloat16:
        _check_e5m2(device)
    try:
        return PagedAttention(load_triton_kernels(device))
    except TritonMissing as reason:
        if asked is not None:
            raise BackendRefused(f"--attention-backend triton cannot be had: {reason}") from reason
        log.warning("attention gathers whole contexts in plain torch, which is slow", extra={"reason": str(reason)})
    return ReferenceAttention()


def _load_flash(device: torch.device, *, dtype: torch.dtype, block_size: int) -> AttentionBackend:
    """Return FlashAttention beside the kernels for all other work. Raises BackendRefused."""
    flash = load_flash(dtype=dtype, block_size=block_size)  # a refusal must come before a kernel is compiled
    try:
        kernels = load_triton_kernels(device)
    except TritonMissing as reason:
        log.warning("norms, gates and sampling are computed in plain torch", extra={"reason": str(reason)})
        return flash
    return FlashBesideKernels(flash.with_write(kernels.write_kv), kernels)


def _check_e4m3(device: torch.device) -> None:
    """Raises BackendRefused for a GPU whose kernels have no numbers of fp8_e4m3fn."""
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < FIRST_WITH_E4M3:
        raise BackendRefused(
            f"--kv-cache-dtype fp8_e4m3fn needs a GPU of compute capability {FIRST_WITH_E4M3 / 10}, and this one has "
            f"{major}.{minor}: --kv-cache-dtype fp8_e5m2, or --attention-backend reference, which is slow"
        )


def _check_e5m2(device: torch.device) -> None:
    """Raises BackendRefused for a release of Triton that cannot compile the kernels for this GPU and bfloat16."""
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor >= FIRST_WITH_PRODUCTS_OF_BF16:
        return
    try:
        installed = version("triton")
    except PackageNotFoundError:
        return  # the kernels are not had at all, which is told elsewhere
    if tuple(int(word) for word in installed.split(".")[:2]) < FIRST_TRITON_WITH_E5M2:
        raise BackendRefused(
            f"--kv-cache-dtype fp8_e5m2 with --dtype bfloat16 needs Triton 3.7 or newer on a GPU of compute capability "
            f"{major}.{minor}, and {installed} is installed: leave --kv-cache-dtype out, or --attention-backend "
            "reference, which is slow"
        )
