"""A forward pass of sequences that lie beside the tables of their slots, and how rank 0 tells the pass to other ranks.

Searches by beams compute so (rule 34). Rank 0 alone chooses; the other ranks copy the blocks and compute the rows that
rank 0 names.
"""

# W sequences of one slot, R sequences of a pass, B blocks of a table

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from textmill_shard.slots.beam_blocks import BlockCopy
from textmill_shard.slots.plan import IdArray

_COUNTS = struct.Struct("<3I")  # copies, rows, tables
_SHAPE = struct.Struct("<2I")


@dataclass(frozen=True, slots=True)
class ApartRows:
    """Sequences of which each computes one token in blocks of its own. The arrays are parallel."""

    slots_R: IdArray  # slot to which the sequence belongs
    starts_R: IdArray  # position of the token
    tokens_R: IdArray
    tables: tuple[npt.NDArray[np.int32], ...]  # block tables of the sequences, `[W, B]` for those of one slot
    states_R: IdArray | None = None  # state row of the sequence, where layers carry state; such a model has one rank


@dataclass(frozen=True, slots=True)
class ApartPass:
    """The rows of a pass, and the copies of blocks that come before the pass."""

    copies: tuple[BlockCopy, ...]
    rows: ApartRows


def pack_pass(one: ApartPass) -> bytes:
    """Return the bytes of a pass: counts, copies, slots, starts and tokens as little-endian i64, then the tables."""
    rows = one.rows
    copies = [(copy.source_block, copy.target_block, copy.num_places) for copy in one.copies]
    numbers = [np.array(copies, dtype=np.int64).reshape(-1), rows.slots_R, rows.starts_R, rows.tokens_R]
    parts = [
        _COUNTS.pack(len(copies), len(rows.slots_R), len(rows.tables)),
        np.concatenate(numbers).astype("<i8").tobytes(),
    ]
    for table_WB in rows.tables:
        parts += [_SHAPE.pack(*table_WB.shape), table_WB.astype("<i4").tobytes()]
    return b"".join(parts)


def unpack_pass(data: bytes) -> ApartPass:
    """Return the pass that `pack_pass` has packed."""
    num_copies, num_rows, num_tables = _COUNTS.unpack_from(data)
    place, count = _COUNTS.size, 3 * num_copies + 3 * num_rows
    numbers = np.frombuffer(data, dtype="<i8", count=count, offset=place).astype(np.int64)
    place += 8 * count
    copied, rows = numbers[: 3 * num_copies].reshape(-1, 3), numbers[3 * num_copies :].reshape(3, num_rows)
    copies = tuple(BlockCopy(*values) for values in copied.tolist())
    slots_R, starts_R, tokens_R = rows
    return ApartPass(copies, ApartRows(slots_R, starts_R, tokens_R, tuple(_tables(data, place, num_tables))))


def _tables(data: bytes, place: int, count: int) -> Iterator[npt.NDArray[np.int32]]:
    for _ in range(count):
        height, width = _SHAPE.unpack_from(data, place)
        place += _SHAPE.size
        values = np.frombuffer(data, dtype="<i4", count=height * width, offset=place)
        yield values.astype(np.int32).reshape(height, width)
        place += 4 * height * width
