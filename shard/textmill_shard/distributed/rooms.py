"""Finds out whether all ranks run on one machine, and if so opens the rooms in which they exchange numbers.

Rank 0 makes the memory and writes into the store where the other ranks find it. Each rank then writes whether it could
open the memory, and reads what the others wrote, so that all ranks use rooms or none does.
"""

import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any

from textmill_shard.native.build import load_library
from textmill_shard.native.ranks import (
    BANK_BYTES,
    MAX_RANKS,
    RankRoom,
    make_room_file,
    open_room_file,
    room_bytes,
)

log = logging.getLogger(__name__)

NO_KERNELS = "the native kernels, by which ranks share memory, are off or cannot be built"


def open_rooms(
    store: Any, num_rooms: int, *, rank: int, world_size: int, native_cache_dir: Path | None, timeout_s: float
) -> tuple[RankRoom, ...] | None:
    """Return so many rooms, or None where the ranks cannot share memory, which a log line then explains.

    All ranks call this. `native_cache_dir` is None where the native kernels are off. A room waits `timeout_s` for a
    rank at most.
    """
    rooms: list[RankRoom] = []
    try:
        if world_size > MAX_RANKS:
            raise OSError(f"{world_size} ranks are more than {MAX_RANKS}")
        library = None if native_cache_dir is None else load_library(native_cache_dir)
        if library is None:
            raise OSError(NO_KERNELS)
        num_bytes = room_bytes(library, world_size, BANK_BYTES)
        for number in range(num_rooms):
            name = f"room/{number}"
            file = _make(store, name, num_bytes) if rank == 0 else _find(store, name, num_bytes)
            rooms.append(
                RankRoom(library, file, rank=rank, num_ranks=world_size, bank_bytes=BANK_BYTES, timeout_s=timeout_s)
            )
        reason = ""
    except (OSError, ValueError) as error:
        reason = f"rank {rank}: {error}"
        if rank == 0:  # the others wait for what rank 0 writes
            for number in range(len(rooms), num_rooms):
                store.set(f"room/{number}", "")
    store.set(f"rooms/{rank}", reason)
    reasons = [store.get(f"rooms/{other}").decode() for other in range(world_size)]
    found = next((text for text in reasons if text), None)
    if found is None:
        return tuple(rooms)
    for room in rooms:
        room.close()
    if rank == 0:
        log.warning("ranks exchange numbers over sockets, because they cannot share memory", extra={"reason": found})
    return None


def _make(store: Any, name: str, num_bytes: int) -> int:
    token = secrets.token_hex(32)
    file = make_room_file(num_bytes, token.encode())
    # The process that opens the file may see this one under another number, in a namespace of its own: the token tells.
    store.set(name, json.dumps({"path": f"/proc/{os.getpid()}/fd/{file}", "token": token}))
    return file


def _find(store: Any, name: str, num_bytes: int) -> int:
    told = store.get(name)
    if not told:
        raise OSError("rank 0 has made no memory")
    place = json.loads(told)
    try:
        return open_room_file(place["path"], num_bytes, place["token"].encode())
    except OSError as error:
        raise OSError(f"the memory of rank 0 cannot be opened, as on another machine ({error})") from error
