"""Chooses the attention backend of a model, once, before the model is built."""

import logging

import torch

from textmill_shard.attention.base import AttentionBackend
from textmill_shard.attention.cpu import CpuAttention
from textmill_shard.attention.flash import load_flash
from textmill_shard.attention.reference import ReferenceAttention
from textmill_shard.errors import BackendRefused
from textmill_shard.native.kernels import Kernels
from textmill_shard.triton_kernels.loading import TritonMissing, load_triton_kernels
from textmill_shard.triton_kernels.paged_backend import PagedAttention

log = logging.getLogger(__name__)


def choose_attention(
    asked: str | None, *, device: torch.device, dtype: torch.dtype, block_size: int, kernels: Kernels | None
) -> AttentionBackend:
    """Return the backend that `--attention-backend` asks for, or that fits the device where `asked` is None.

    Raises BackendRefused with a sentence for a backend that cannot be had.
    """
    if asked == "reference":
        return ReferenceAttention()
    if device.type != "cuda":
        if asked is not None:
            raise BackendRefused(
                f"--attention-backend {asked} computes on a GPU, and the device is {device.type}: leave the flag out"
            )
        return ReferenceAttention() if kernels is None else CpuAttention(kernels)
    if asked == "flash":
        return load_flash(dtype=dtype, block_size=block_size)
    try:
        return PagedAttention(load_triton_kernels(device))
    except TritonMissing as reason:
        if asked is not None:
            raise BackendRefused(f"--attention-backend triton cannot be had: {reason}") from reason
        log.warning("attention gathers whole contexts in plain torch, which is slow", extra={"reason": str(reason)})
    return ReferenceAttention()
