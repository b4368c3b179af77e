"""How rank 0 tells the other ranks what to execute (rule 24).

Rank 0 sends one entry per step: the number of the step, the plans to apply before the step, and the slots that ended
since the last entry. Under overlap the entry also corrects tokens that the ranks took from rank 0 on the device. All
ranks then compose one and the same step, with `step_executor.py`. `shared_channel.py` is the transport between ranks of
one machine.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from textmill_shard.engine.apart_pass import ApartPass, pack_pass, unpack_pass
from textmill_shard.slots.plan import NO_IDS, IdArray

CHANNEL_TIMEOUT_S = (
    600.0  # rank 0 sends an entry every second or sooner, and the connection of a dead rank closes at once
)
HEADER_INTS = 13


class OrderKind(Enum):
    """What a rank does about adapters."""

    READ = 1  # begin to read `folder`
    PUT = 2  # what was read last may be named from now on
    DISCARD = 3  # forget what was read last
    REMOVE = 4  # free the adapter of `digest`


@dataclass(frozen=True, slots=True)
class AdapterOrder:
    """One thing that a rank does about adapters."""

    kind: OrderKind
    folder: str = ""
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Rewinds:
    """Slots whose last token is another one than the token that their step drew at first (parallel arrays)."""

    slots: IdArray
    tokens: IdArray
    is_launched: npt.NDArray[np.bool_]  # the next step of the slot was launched with the first token
    output_ids: tuple[IdArray, ...] = ()  # all output tokens of each slot, the right one at last


NO_REWINDS = Rewinds(NO_IDS, NO_IDS, np.zeros(0, dtype=bool))


@dataclass(frozen=True, slots=True)
class Look:
    """Rows of a step that the ranks lay together whole, because they share a vocabulary. No row: none is needed."""

    number: int  # of the gift (`part_desk.py`)
    rows: IdArray  # indices into the rows that sample, rising


@dataclass(frozen=True, slots=True)
class RankEntry:
    """What a rank executes.

    First the new epoch, then the rewinds, the ended slots, the orders about adapters, the plans, the released slots,
    the slots whose rows are ready and one step, or a pass of searches by beams. An entry with a look or with masks has
    nothing else.
    """

    step: int  # number of the step, if the step has rows
    is_new_epoch: bool = False
    is_stop: bool = False  # the last entry, after which the rank leaves its loop
    ended_slots: IdArray = field(default_factory=lambda: NO_IDS)
    plans: tuple[bytes, ...] = ()  # serialised `Plan` messages, in order
    released_slots: IdArray = field(
        default_factory=lambda: NO_IDS
    )  # may sample from now on, because their grammars are ready
    adapter_orders: tuple[AdapterOrder, ...] = ()
    ready_slots: IdArray = field(default_factory=lambda: NO_IDS)  # may compute further, because rows of items are there
    ready_until: IdArray = field(default_factory=lambda: NO_IDS)  # parallel: tokens that these slots may compute
    rewinds: Rewinds = field(default_factory=lambda: NO_REWINDS)
    apart: ApartPass | None = None  # computed in the place of the step
    look: Look | None = None
    masks: tuple[bytes, ...] = ()  # ids that may follow, one bit each, for each row of the step that has a grammar


class RankChannel(Protocol):
    """The seam between rank 0 and its followers."""

    @property
    def needs_plans(self) -> bool:
        """Whether entries must carry the bytes of plans."""
        ...

    def send(self, entry: RankEntry) -> None:
        """Hand the entry to every follower. Rank 0 calls this."""
        ...

    def receive(self) -> RankEntry:
        """Wait for the next entry. A follower calls this."""
        ...

    def share_tokens(self, tokens_N: IdArray) -> IdArray:
        """Return the ids that rank 0 sampled.

        Rank 0 gives these ids, and each follower gives an array of as many ids, whose content does not matter.
        """
        ...

    def share_tensor(self, tensor: torch.Tensor) -> None:
        """Give each follower the values that rank 0 has. A follower hands in a tensor of equal shape, type and device.

        All ranks call this in equal order. The values of a follower's tensor are replaced.
        """
        ...


class SoloChannel:
    """The channel of a rank without followers."""

    needs_plans = False

    def send(self, entry: RankEntry) -> None:
        """Do nothing, because there is no follower."""

    def receive(self) -> RankEntry:
        raise AssertionError("a rank alone follows nobody")

    def share_tokens(self, tokens_N: IdArray) -> IdArray:
        return tokens_N

    def share_tensor(self, tensor: torch.Tensor) -> None:
        """Do nothing, because there is no follower."""


class GlooChannel:
    """Broadcasts over a process group of CPUs: a header of fixed size, then the payload unless it is empty.

    Tensors of a GPU go over the group of the model, which all ranks have joined.
    """

    needs_plans = True

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=CHANNEL_TIMEOUT_S))

    def send(self, entry: RankEntry) -> None:
        header, payload = pack_entry(entry)
        dist.broadcast(torch.tensor(header, dtype=torch.int64), src=0, group=self._group)
        if payload:
            dist.broadcast(torch.frombuffer(bytearray(payload), dtype=torch.uint8), src=0, group=self._group)

    def receive(self) -> RankEntry:
        header = torch.zeros(HEADER_INTS, dtype=torch.int64)
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

    def share_tensor(self, tensor: torch.Tensor) -> None:
        dist.broadcast(tensor, src=0, group=self._group if tensor.device.type == "cpu" else None)


def pack_entry(entry: RankEntry) -> tuple[list[int], bytes]:
    """Return the header and the payload of an entry.

    The last number of the header is the length of the payload in bytes. The payload holds slots and tokens as
    little-endian u32, the bounds of the ready slots as i64, then each order about adapters, the pass of searches, the
    output tokens of each rewound slot, each mask and each plan after its own length.
    """
    rewinds = entry.rewinds
    numbers = [entry.ended_slots, entry.released_slots, entry.ready_slots]
    numbers += [rewinds.slots, rewinds.tokens, rewinds.is_launched.astype(np.int64)]
    look = entry.look or Look(0, NO_IDS)
    numbers += [look.rows]
    parts = [np.concatenate(numbers).astype("<u4").tobytes(), entry.ready_until.astype("<i8").tobytes()]
    orders = [_pack_order(order) for order in entry.adapter_orders]
    passes = [] if entry.apart is None else [pack_pass(entry.apart)]
    outputs = [ids.astype("<u4").tobytes() for ids in rewinds.output_ids]
    assert len(outputs) == len(rewinds.slots), "each rewound slot has its output tokens"
    for piece in (*orders, *passes, *outputs, *entry.masks, *entry.plans):
        parts += [struct.pack("<I", len(piece)), piece]
    payload = b"".join(parts)
    flags = (int(entry.is_new_epoch), int(entry.is_stop))
    num_slots = (len(entry.ended_slots), len(entry.released_slots), len(entry.ready_slots))
    counts = (*num_slots, len(rewinds.slots), len(orders), len(passes), look.number, len(look.rows), len(entry.masks))
    header = [entry.step, *flags, *counts, len(payload)]
    assert len(header) == HEADER_INTS, header  # the followers receive as many numbers
    return header, payload


def unpack_entry(header: Sequence[int], payload: bytes) -> RankEntry:
    """Return the entry that `pack_entry` has packed."""
    step, is_new_epoch, is_stop, *counts, _ = header
    num_ended, num_released, num_ready, num_rewinds, num_orders, num_passes, look, num_looked, num_masks = counts
    lengths = (num_ended, num_released, num_ready, num_rewinds, num_rewinds, num_rewinds, num_looked)
    place = 4 * sum(lengths)
    numbers = np.frombuffer(payload[:place], dtype="<u4").astype(np.int64)
    ended, released, ready, slots, tokens, is_launched, looked = np.split(numbers, np.cumsum(lengths)[:-1])
    ready_until = np.frombuffer(payload[place : place + 8 * num_ready], dtype="<i8").astype(np.int64)
    place += 8 * num_ready
    pieces = []
    while place < len(payload):
        (length,) = struct.unpack_from("<I", payload, place)
        pieces.append(payload[place + 4 : place + 4 + length])
        place += 4 + length
    first_output = num_orders + num_passes
    first_mask = first_output + num_rewinds
    first_plan = first_mask + num_masks
    outputs = (np.frombuffer(piece, dtype="<u4").astype(np.int64) for piece in pieces[first_output:first_mask])
    return RankEntry(
        step=step,
        is_new_epoch=bool(is_new_epoch),
        is_stop=bool(is_stop),
        ended_slots=ended,
        plans=tuple(pieces[first_plan:]),
        released_slots=released,
        ready_slots=ready,
        ready_until=ready_until,
        rewinds=Rewinds(slots, tokens, is_launched.astype(bool), tuple(outputs)),
        adapter_orders=tuple(_unpack_order(piece) for piece in pieces[:num_orders]),
        apart=unpack_pass(pieces[num_orders]) if num_passes else None,
        look=Look(look, looked) if look else None,
        masks=tuple(pieces[first_mask:first_plan]),
    )


def _pack_order(order: AdapterOrder) -> bytes:
    return bytes([order.kind.value]) + (order.digest if order.kind is OrderKind.REMOVE else os.fsencode(order.folder))


def _unpack_order(data: bytes) -> AdapterOrder:
    kind, rest = OrderKind(data[0]), data[1:]
    if kind is OrderKind.REMOVE:
        return AdapterOrder(kind, digest=rest)
    return AdapterOrder(kind, folder=os.fsdecode(rest))
