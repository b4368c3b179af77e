"""How rank 0 tells the other ranks what to execute (rule 24).

One entry per step: its number, the plans applied before it, the slots that ended since the last entry. All ranks then
compose the same step. What a rank does with an entry is in `step_executor.py`; another transport (a ring in shared
memory) needs the four verbs of `RankChannel` and nothing else.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

from textmill_shard.slots.plan import NO_IDS, IdArray

CHANNEL_TIMEOUT_S = 600.0  # rank 0 sends an entry at least every second; a dead rank closes its connection at once
_HEADER_INTS = 6


@dataclass(frozen=True, slots=True)
class RankEntry:
    """What the ranks execute, in this order: new epoch, ended slots, plans, released slots, then one composed step."""

    step: int  # number of the step, should there be rows for one
    is_new_epoch: bool = False
    is_stop: bool = False  # the last entry: leave
    ended_slots: IdArray = field(default_factory=lambda: NO_IDS)
    plans: tuple[bytes, ...] = ()  # serialised `Plan` messages, in order
    released_slots: IdArray = field(default_factory=lambda: NO_IDS)  # may sample from now on: their grammar is ready


class RankChannel(Protocol):
    """The seam between rank 0 and its followers."""

    @property
    def needs_plans(self) -> bool:
        """Whether entries must carry the bytes of plans."""
        ...

    def send(self, entry: RankEntry) -> None:
        """Rank 0: hand the entry to every follower."""
        ...

    def receive(self) -> RankEntry:
        """Follower: wait for the next entry."""
        ...

    def share_tokens(self, tokens_N: IdArray) -> IdArray:
        """Rank 0 gives the sampled ids, the others an array of the same length; all get those of rank 0."""
        ...


class SoloChannel:
    """The channel of a rank without followers."""

    needs_plans = False

    def send(self, entry: RankEntry) -> None:
        """Nobody listens."""

    def receive(self) -> RankEntry:
        raise AssertionError("a rank alone follows nobody")

    def share_tokens(self, tokens_N: IdArray) -> IdArray:
        return tokens_N


class GlooChannel:
    """Broadcasts over a CPU process group: a header of fixed size, then bytes when there are any."""

    needs_plans = True

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=CHANNEL_TIMEOUT_S))

    def send(self, entry: RankEntry) -> None:
        header, payload = pack_entry(entry)
        dist.broadcast(torch.tensor(header, dtype=torch.int64), src=0, group=self._group)
        if payload:
            dist.broadcast(torch.frombuffer(bytearray(payload), dtype=torch.uint8), src=0, group=self._group)

    def receive(self) -> RankEntry:
        header = torch.zeros(_HEADER_INTS, dtype=torch.int64)
        dist.broadcast(header, src=0, group=self._group)
        payload = torch.empty(int(header[-1]), dtype=torch.uint8)
        if len(payload):
            dist.broadcast(payload, src=0, group=self._group)
        return unpack_entry(header.tolist(), payload.numpy().tobytes())

    def share_tokens(self, tokens_N: IdArray) -> IdArray:
        if not len(tokens_N):
            return tokens_N
        tokens = torch.from_numpy(tokens_N.copy())
        dist.broadcast(tokens, src=0, group=self._group)
        return tokens.numpy()


def pack_entry(entry: RankEntry) -> tuple[list[int], bytes]:
    """The header, whose last number is the length of the payload; slots as u32, then plans behind their lengths."""
    parts = [np.concatenate([entry.ended_slots, entry.released_slots]).astype("<u4").tobytes()]
    for plan in entry.plans:
        parts += [struct.pack("<I", len(plan)), plan]
    payload = b"".join(parts)
    flags = (int(entry.is_new_epoch), int(entry.is_stop))
    return [entry.step, *flags, len(entry.ended_slots), len(entry.released_slots), len(payload)], payload


def unpack_entry(header: Sequence[int], payload: bytes) -> RankEntry:
    """The inverse of `pack_entry`."""
    step, is_new_epoch, is_stop, num_ended, num_released, _ = header
    place = 4 * (num_ended + num_released)
    slots = np.frombuffer(payload[:place], dtype="<u4").astype(np.int64)
    plans = []
    while place < len(payload):
        (length,) = struct.unpack_from("<I", payload, place)
        plans.append(payload[place + 4 : place + 4 + length])
        place += 4 + length
    return RankEntry(
        step=step,
        is_new_epoch=bool(is_new_epoch),
        is_stop=bool(is_stop),
        ended_slots=slots[:num_ended],
        plans=tuple(plans),
        released_slots=slots[num_ended:],
    )
