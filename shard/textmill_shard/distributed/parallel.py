"""The ranks of one model and how they exchange tensors. One rank alone has no process group."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """This rank's seat. With `world_size` 1 every exchange gives back what it was given."""

    rank: int = 0
    world_size: int = 1

    @staticmethod
    def join(
        *, rank: int, world_size: int, master_addr: str, master_port: int, device: str, timeout_s: float = 600.0
    ) -> "TensorParallel":
        """Meet the other ranks: gloo on the CPU, NCCL on CUDA devices. Waits until all are there."""
        if world_size > 1:
            dist.init_process_group(
                "nccl" if device.startswith("cuda") else "gloo",
                init_method=f"tcp://{master_addr}:{master_port}",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=timeout_s),
            )
        return TensorParallel(rank=rank, world_size=world_size)

    def leave(self) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_gather(self, tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Join along the last dimension; rank r brings `sizes[r]` of it."""
        if self.world_size == 1:
            return tensor
        # Ranks bring parts of one size: the shorter ones are padded, since not every backend takes ragged parts.
        widest = max(sizes)
        padded = torch.nn.functional.pad(tensor, (0, widest - tensor.shape[-1])).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[..., :size] for part, size in zip(parts, sizes, strict=True)], dim=-1)

    def min_int(self, value: int, device: torch.device) -> int:
        """The smallest value that any rank brings."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.int64, device=device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return int(tensor.item())
