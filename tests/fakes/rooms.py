"""Rooms of ranks that are threads of one process. A kernel's call gives the lock of the interpreter away."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import pytest
from textmill_shard.native.build import load_library
from textmill_shard.native.ranks import RankRoom, make_room_file, open_room_file, room_bytes

from tests.fakes.native_cases import native_cache_folder

WAIT_S = 30.0
_Found = TypeVar("_Found")


@contextmanager
def rooms(num_ranks: int, *, bank_bytes: int = 4096, timeout_s: float = WAIT_S) -> Iterator[list[RankRoom]]:
    """Give a room for each rank, each with a file of its own, as processes have."""
    library = load_library(native_cache_folder())
    if library is None:
        pytest.skip("there is no C compiler")
    num_bytes = room_bytes(library, num_ranks, bank_bytes)
    first = make_room_file(num_bytes, b"token")
    path = f"/proc/{os.getpid()}/fd/{first}"
    files = [first, *(open_room_file(path, num_bytes, b"token") for _ in range(1, num_ranks))]
    made = [
        RankRoom(library, file, rank=rank, num_ranks=num_ranks, bank_bytes=bank_bytes, timeout_s=timeout_s)
        for rank, file in enumerate(files)
    ]
    try:
        yield made
    finally:
        for room in made:
            room.close()


def by_each(made: list[RankRoom], work: Callable[[RankRoom], _Found]) -> list[_Found]:
    """Let each rank work in a thread of its own, and return what each found."""
    with ThreadPoolExecutor(len(made)) as pool:
        return [future.result(WAIT_S) for future in [pool.submit(work, room) for room in made]]
