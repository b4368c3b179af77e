"""All ranks share memory, or none does, and the reason is logged."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from textmill_shard.distributed import rooms
from textmill_shard.distributed.rooms import open_rooms

from tests.fakes.native_cases import native_cache_folder, native_kernels

WAIT_S = 30.0
SHM = Path("/dev/shm")


class ThreadStore:
    """A store as torch has one, between threads: `get` waits for the key."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self._changed:
            self._values[key] = value.encode()
            self._changed.notify_all()

    def get(self, key: str) -> bytes:
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._values, WAIT_S), key
            return self._values[key]


def open_all(folders: list[Path | None], store: Any = None) -> list[Any]:
    """Let each rank open two rooms, and return what each has got. `folders` are the caches of the native kernels."""
    store = store or ThreadStore()

    def work(rank: int) -> Any:
        return open_rooms(
            store, 2, rank=rank, world_size=len(folders), native_cache_dir=folders[rank], timeout_s=WAIT_S
        )

    with ThreadPoolExecutor(len(folders)) as pool:
        return list(pool.map(work, range(len(folders))))


def test_ranks_of_one_machine_meet_in_rooms_and_leave_no_file(tmp_path: Path) -> None:
    native_kernels()
    before = set(SHM.iterdir()) if SHM.exists() else set()
    found = open_all([native_cache_folder()] * 3)
    after = set(SHM.iterdir()) if SHM.exists() else set()
    assert not {path for path in after - before if "textmill" in path.name}
    with ThreadPoolExecutor(3) as pool:
        for number in range(2):
            sums = list(pool.map(lambda made, number=number: gathered(made[number]), found))  # type: ignore[misc]
            assert sums == [[0, 1, 2]] * 3
    for made in found:
        for room in made:
            room.close()


def gathered(room: Any) -> list[int]:
    found: list[int] = room.gather(torch.tensor(room.rank)).tolist()
    return found


@pytest.mark.parametrize("without", [0, 1])
def test_a_rank_without_native_kernels_makes_all_use_sockets(without: int, caplog: pytest.LogCaptureFixture) -> None:
    native_kernels()
    folders: list[Path | None] = [native_cache_folder(), native_cache_folder()]
    folders[without] = None
    with caplog.at_level(logging.WARNING):
        assert open_all(folders) == [None, None]
    (record,) = [record for record in caplog.records if "ranks exchange numbers over sockets" in record.message]
    assert record.__dict__["reason"] == f"rank {without}: {rooms.NO_KERNELS}"


class OtherMachine(ThreadStore):
    """Tells the other ranks of a process that is not on this machine."""

    def set(self, key: str, value: str) -> None:
        super().set(key, value.replace("/proc/", "/proc/4194305"))  # above the largest number of a process


def test_ranks_of_another_machine_make_all_use_sockets(caplog: pytest.LogCaptureFixture) -> None:
    native_kernels()
    with caplog.at_level(logging.WARNING):
        assert open_all([native_cache_folder()] * 2, OtherMachine()) == [None, None]
    assert "the memory of rank 0 cannot be opened, as on another machine" in caplog.records[-1].__dict__["reason"]


def test_a_machine_that_has_no_memory_left_makes_all_use_sockets(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_kernels()

    def refuse(num_bytes: int, token: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rooms, "make_room_file", refuse)
    with caplog.at_level(logging.WARNING):
        assert open_all([native_cache_folder()] * 2) == [None, None]
    assert "No space left on device" in caplog.records[-1].__dict__["reason"]
