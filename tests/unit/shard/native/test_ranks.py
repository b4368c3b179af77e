"""Ranks that share memory add up, gather and hand on numbers, and find out when another rank ends or hangs."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from textmill_shard.native.ranks import RankLost, RankRoom, make_room_file, open_room_file

from tests.fakes.rooms import by_each, rooms


def tensors_of(rank: int, dtype: torch.dtype, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


# Of one number, of some that fill no vector, of a whole bank, and of several banks and a rest.
SIZES = (1, 17, 1024, 5000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_sums_are_those_in_the_order_of_the_ranks_with_equal_bits(num_ranks: int, dtype: torch.dtype) -> None:
    def work(room: RankRoom) -> list[torch.Tensor]:
        tensors = tensors_of(room.rank, dtype, SIZES)
        for tensor in tensors:
            room.add(tensor)
        return tensors

    with rooms(num_ranks) as made:
        found = by_each(made, work)
    by_rank = [tensors_of(rank, dtype, SIZES) for rank in range(num_ranks)]
    for number in range(len(SIZES)):
        expected = by_rank[0][number].float()
        for rank in range(1, num_ranks):
            expected = expected + by_rank[rank][number].float()
        for tensors in found:
            assert torch.equal(tensors[number], expected.to(dtype))


def test_thousands_of_exchanges_of_many_sizes_never_mix() -> None:
    sizes = torch.randint(1, 3000, (2000,), generator=torch.Generator().manual_seed(0)).tolist()

    def work(room: RankRoom) -> int:
        wrong = 0
        for number, size in enumerate(sizes):
            tensor = torch.full((size,), float(number + room.rank))
            room.add(tensor)
            wrong += int((tensor != 3 * number + 3).sum())
        return wrong

    with rooms(3) as made:
        assert by_each(made, work) == [0, 0, 0]
        assert {room.num_exchanges for room in made} == {len(sizes)}


def test_a_tensor_that_is_not_in_one_piece_is_added_up_in_place() -> None:
    def work(room: RankRoom) -> torch.Tensor:
        whole = torch.arange(12.0).view(3, 4) + room.rank
        room.add(whole[:, 1:3])
        return whole

    with rooms(2) as made:
        first, _ = by_each(made, work)
    expected = torch.arange(12.0).view(3, 4)
    expected[:, 1:3] = 2 * expected[:, 1:3] + 1
    assert torch.equal(first, expected)


@pytest.mark.parametrize("shape", [(), (3,), (7, 900)])
def test_every_rank_gathers_the_tensors_of_all(shape: tuple[int, ...]) -> None:
    def part(rank: int) -> torch.Tensor:
        return torch.randint(0, 1000, shape, generator=torch.Generator().manual_seed(rank))

    with rooms(3) as made:
        found = by_each(made, lambda room: room.gather(part(room.rank)))
    for parts in found:
        assert torch.equal(parts, torch.stack([part(rank) for rank in range(3)]))


def test_messages_of_any_length_come_in_order() -> None:
    lengths = [0, 1, 4087, 4088, 4089, 20_000, 3, 0, 8]
    messages = [bytes([number]) * length for number, length in enumerate(lengths)]

    def work(room: RankRoom) -> list[bytes]:
        if room.rank == 0:
            for message in messages:
                room.send(message)
            return messages
        return [room.receive() for _ in messages]

    with rooms(3) as made:
        assert by_each(made, work) == [messages] * 3


def test_a_rank_that_left_ends_the_waits_of_the_others_and_names_itself() -> None:
    with rooms(3) as made:
        made[1].close()

        def work(room: RankRoom) -> str:
            with pytest.raises(RankLost) as lost:
                room.add(torch.zeros(4))
            with pytest.raises(RankLost):  # no later exchange works
                room.add(torch.zeros(4))
            return str(lost.value)

        assert by_each([made[0], made[2]], work) == ["rank 1 of 3 has ended"] * 2
        with pytest.raises(RankLost, match="rank 1 of 3 has ended"):
            made[2].receive()


def test_what_a_rank_gave_before_its_end_still_arrives() -> None:
    with rooms(2) as made:
        made[0].send(b"the last entry")
        made[0].close()
        assert made[1].receive() == b"the last entry"
        with pytest.raises(RankLost, match="rank 0 of 2 has ended"):
            made[1].receive()


def test_a_rank_that_hangs_is_waited_for_no_longer_than_the_limit() -> None:
    with rooms(2, timeout_s=0.3) as made:
        began = time.monotonic()
        with pytest.raises(RankLost, match=r"rank 1 of 2 did not come to an exchange within 0\.3 s"):
            made[0].add(torch.zeros(4))
        assert time.monotonic() - began < 5.0


def test_a_rank_that_waits_uses_no_processor() -> None:
    with rooms(2, timeout_s=0.5) as made:
        before = time.thread_time()
        with pytest.raises(RankLost):
            made[1].receive()
        assert time.thread_time() - before < 0.1


# Takes the lock of rank 1 as `room_new` does, and stays.
HOLDER = """
import fcntl, os, struct, sys, time
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 1, 1, 0))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_process_that_is_killed_is_found_although_nobody_has_asked_for_its_exit_code() -> None:
    with rooms(2, timeout_s=20.0) as made:
        made[1].close()
        command = [sys.executable, "-c", HOLDER, f"/proc/{os.getpid()}/fd/{made[0].file}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            with ThreadPoolExecutor(1) as pool:
                lost = pool.submit(made[0].add, torch.zeros(8))
                with pytest.raises(TimeoutError):  # the process lives, so that the exchange waits
                    lost.result(0.3)
                process.send_signal(signal.SIGKILL)  # a zombie from here on
                with pytest.raises(RankLost, match="rank 1 of 2 has ended"):
                    lost.result(10.0)
        finally:
            process.kill()
            process.communicate()


def test_a_file_of_something_else_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(8192))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match="is another file"):
        open_room_file(str(link), 8192, b"token")
    file = make_room_file(8192, b"other")
    try:
        for num_bytes, token in ((8192, b"token"), (4096, b"other")):
            with pytest.raises(OSError, match="is another file"):
                open_room_file(f"/proc/{os.getpid()}/fd/{file}", num_bytes, token)
    finally:
        os.close(file)
