"""How rank 0 tells ranks of its own machine what to execute: through memory that all of them have mapped."""

import struct
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

from textmill_shard.engine.rank_channel import HEADER_INTS, RankEntry, pack_entry, unpack_entry
from textmill_shard.slots.plan import IdArray

_HEADER = struct.Struct(f"<{HEADER_INTS}q")


class MessageRoom(Protocol):
    """Carries messages from rank 0 to all other ranks (`native/ranks.py`)."""

    @property
    def rank(self) -> int: ...

    def send(self, message: bytes) -> None: ...

    def receive(self) -> bytes: ...


class SharedChannel:
    """Sends each entry as one message. Tensors of a GPU go over the group of the model, which all ranks have joined."""

    needs_plans = True

    def __init__(self, room: MessageRoom) -> None:
        self._room = room

    def send(self, entry: RankEntry) -> None:
        header, payload = pack_entry(entry)
        self._room.send(_HEADER.pack(*header) + payload)

    def receive(self) -> RankEntry:
        message = self._room.receive()
        return unpack_entry(_HEADER.unpack_from(message), message[_HEADER.size :])

    def share_tokens(self, tokens_N: IdArray) -> IdArray:
        if not len(tokens_N):
            return tokens_N
        if self._room.rank == 0:
            self._room.send(tokens_N.astype("<i8").tobytes())
            return tokens_N
        return np.frombuffer(self._room.receive(), dtype="<i8").astype(np.int64)

    def share_tensor(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != "cpu":
            dist.broadcast(tensor, src=0)
        elif self._room.rank == 0:
            self._room.send(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        elif tensor.numel():
            received = torch.frombuffer(bytearray(self._room.receive()), dtype=tensor.dtype)
            tensor.copy_(received.view(tensor.shape))
        else:
            self._room.receive()
