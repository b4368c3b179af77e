"""How the ranks of one model exchange tensors. A single rank has no process group."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from textmill_shard.distributed.meeting import open_store
from textmill_shard.distributed.rooms import open_rooms
from textmill_shard.native.ranks import RankRoom


@dataclass(slots=True)
class _Exchanges:
    """Whether the exchanges of a rank take place."""

    rest: bool = False


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """The number of this rank and of all ranks. With `world_size` 1 each exchange returns its argument."""

    rank: int = 0
    world_size: int = 1
    room: RankRoom | None = None  # for the tensors of a step, where all ranks compute on the CPUs of one machine
    entry_room: RankRoom | None = None  # for messages of rank 0, where all ranks run on one machine
    _exchanges: _Exchanges = field(default_factory=_Exchanges, repr=False, compare=False)

    @staticmethod
    def join(
        *,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        device: str,
        native_cache_dir: Path | None = None,
        timeout_s: float = 600.0,
    ) -> "TensorParallel":
        """Join the other ranks in a process group and wait until all of them have joined.

        The group uses gloo on the CPU and NCCL on CUDA devices. Ranks of one machine also share memory, unless
        `native_cache_dir` is None, because the native kernels do the exchange.

        NCCL is set up on the device within this call, so that a fault of the links is told here and not in a step. Its
        set-up waits for ever for a rank that does not come, so that the ranks meet before, with a limit of time. An
        exchange of NCCL that takes longer than `timeout_s` ends the process (by SIGABRT, from a thread of torch).
        """
        if world_size == 1:
            return TensorParallel()
        timeout = timedelta(seconds=timeout_s)
        store = open_store(
            rank=rank, world_size=world_size, master_addr=master_addr, master_port=master_port, timeout=timeout
        )
        rooms = open_rooms(
            store, 2, rank=rank, world_size=world_size, native_cache_dir=native_cache_dir, timeout_s=timeout_s
        )
        is_cuda = device.startswith("cuda")
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            # Without a device NCCL takes that of the first tensor, and torch guesses one for a barrier, by the rank.
            device_id=torch.device(device) if is_cuda else None,
        )
        entry_room, room = (None, None) if rooms is None else rooms
        return TensorParallel(rank, world_size, room=None if is_cuda else room, entry_room=entry_room)

    def leave(self) -> None:
        """Leave the group and the rooms."""
        for room in (self.room, self.entry_room):
            if room is not None:
                room.close()
        if self.world_size > 1:
            dist.destroy_process_group()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Let this rank exchange nothing within the context: each other rank seems to bring what this rank brings.

        A step that this rank tries so takes the memory of a real step, and its numbers mean nothing. Where memory runs
        out on one rank alone, no other rank waits for that rank. `min_int` does not rest, and neither do the exchanges
        that native kernels make in the room themselves.
        """
        self._exchanges.rest = True
        try:
            yield
        finally:
            self._exchanges.rest = False

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add the tensors of all ranks up, in place. In a room every rank gets equal bits."""
        if self._exchanges.rest:
            return tensor
        if self.room is not None:
            self.room.add(tensor)
        elif self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_gather(self, tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Join the tensors of all ranks along the last dimension, of which rank r brings `sizes[r]` elements."""
        if self.world_size == 1:
            return tensor
        # Shorter parts are padded, because not every backend takes parts of different sizes.
        widest = max(sizes)
        padded = torch.nn.functional.pad(tensor, (0, widest - tensor.shape[-1])).contiguous()
        parts = self.gather(padded)
        return torch.cat([part[..., :size] for part, size in zip(parts, sizes, strict=True)], dim=-1)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensors of all ranks, [world size, ...]. They have one shape and type."""
        if self.world_size == 1:
            return tensor.unsqueeze(0)
        if self._exchanges.rest:
            return tensor.expand(self.world_size, *tensor.shape).contiguous()
        if self.room is not None:
            return self.room.gather(tensor)
        numbers = tensor.flatten()
        parts = numbers.new_empty(self.world_size * len(numbers))
        dist.all_gather_into_tensor(parts, numbers)
        return parts.view(self.world_size, *tensor.shape)

    def min_int(self, value: int, device: torch.device) -> int:
        """Return the smallest of the values that the ranks bring."""
        if self.world_size == 1:
            return value
        if self.room is not None:
            return int(self.room.gather(torch.tensor(value)).min())
        tensor = torch.tensor([value], dtype=torch.int64, device=device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return int(tensor.item())
