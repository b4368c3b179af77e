"""FlashAttention in a shard whose other work is done by the kernels of the GPU."""

from textmill_shard.attention.base import AttentionBackend, AttentionRule, AttentionStep
from textmill_shard.attention.flash import FlashAttention
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.triton_kernels.interface import DeviceKernels
from textmill_shard.triton_kernels.paged_backend import PagedAttention


class FlashBesideKernels:
    """Attends by `flash`, which writes keys and values by the kernels, as layers and the sampler work by them."""

    name = "flash"

    def __init__(self, flash: FlashAttention, kernels: DeviceKernels) -> None:
        self._flash = flash
        self.kernels = kernels

    def accept(self, rule: AttentionRule, spec: LayerKvSpec) -> AttentionRule:
        return self._flash.accept(rule, spec)

    def prepare(self, batch: ForwardBatch, *, block_size: int) -> AttentionStep:
        return self._flash.prepare(batch, block_size=block_size)


def kernels_of(backend: AttentionBackend) -> DeviceKernels | None:
    """Return the kernels of the GPU for layers, adapters and the sampler. None: plain torch does their work."""
    return backend.kernels if isinstance(backend, PagedAttention | FlashBesideKernels) else None
