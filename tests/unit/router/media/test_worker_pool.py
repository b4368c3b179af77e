"""Processes that read images: they are ended and replaced, and one image harms no other."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from textmill_router.errors import Overloaded, ShuttingDown
from textmill_router.media import worker_pool
from textmill_router.media.image_source import Detail
from textmill_router.media.worker_messages import ImageRefusal, WorkerSetup
from textmill_router.media.worker_pool import ReadImage, WorkerPool, WorkersUnusable

from tests.fakes.image_families import write_image_family
from tests.fakes.pictures import picture, png_of_zeros
from tests.fakes.quick_image_worker import COMMAND


def setup_of(folder: str = "", *, memory_bytes: int = 2 << 30) -> WorkerSetup:
    return WorkerSetup(folder, "float32", 25_000_000, 4096, 10, memory_bytes)


def with_quick_workers(
    work: Callable[[WorkerPool], Coroutine[Any, Any, None]], *, num_workers: int = 1, timeout_s: float = 10.0
) -> None:
    """Run `work` with a pool of which one process has started."""

    async def run() -> None:
        pool = WorkerPool(setup_of(), num_workers, timeout_s, COMMAND)
        await pool.start()
        try:
            await work(pool)
        finally:
            await pool.close()

    asyncio.run(run())


def read(pool: WorkerPool, data: bytes) -> "asyncio.Task[ReadImage | ImageRefusal]":
    return asyncio.create_task(pool.read(data, Detail.HIGH))


async def until_busy(pool: WorkerPool) -> None:
    while pool.idle_pids:  # noqa: ASYNC110 - the pool sets no event
        await asyncio.sleep(0.001)


def test_answers_come_with_their_tensors() -> None:
    async def work(pool: WorkerPool) -> None:
        large = os.urandom(3_000_000)  # more than pipes hold
        for data in (b"abc", large, b"d"):
            found = await read(pool, data)
            assert isinstance(found, ReadImage)
            assert (found.tensors[0].data, found.tensors[0].shape) == (data, (len(data),))
        assert await read(pool, b"refuse") == ImageRefusal("it says so", is_too_large=True)
        assert len(pool.idle_pids) == 1

    with_quick_workers(work)


def test_a_worker_killed_in_work_harms_its_image_alone() -> None:
    async def work(pool: WorkerPool) -> None:
        [pid] = pool.idle_pids
        os.kill(pid, signal.SIGSTOP)  # it stays in the middle of the image
        lost, waiting = read(pool, b"a"), read(pool, b"b")
        await until_busy(pool)
        os.kill(pid, signal.SIGKILL)
        refusal = await lost
        assert isinstance(refusal, ImageRefusal)
        assert not refusal.is_final
        assert isinstance(await waiting, ReadImage)
        assert pid not in pool.idle_pids

    with_quick_workers(work)


def test_a_worker_that_dies_in_its_answer_harms_its_image_alone() -> None:
    async def work(pool: WorkerPool) -> None:
        lost, waiting = read(pool, b"die"), read(pool, b"b")
        assert isinstance(await lost, ImageRefusal)
        assert isinstance(await waiting, ReadImage)

    with_quick_workers(work)


def test_a_worker_that_died_idle_harms_nobody() -> None:
    async def work(pool: WorkerPool) -> None:
        [pid] = pool.idle_pids
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert isinstance(await read(pool, b"a"), ReadImage)

    with_quick_workers(work)


def test_an_image_that_a_busy_machine_does_not_read_in_time_may_be_sent_again() -> None:
    async def work(pool: WorkerPool) -> None:
        [pid] = pool.idle_pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(Overloaded, match=r"not read within 0\.2 s"):
            await read(pool, b"a")
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    with_quick_workers(work, timeout_s=0.2)


def test_a_client_that_leaves_does_not_spoil_the_worker() -> None:
    async def work(pool: WorkerPool) -> None:
        [pid] = pool.idle_pids
        os.kill(pid, signal.SIGSTOP)
        left = read(pool, b"aaa")
        await until_busy(pool)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        os.kill(pid, signal.SIGCONT)
        found = await read(pool, b"b")
        assert isinstance(found, ReadImage)
        assert found.tensors[0].data == b"b"
        assert pool.idle_pids == [pid]

    with_quick_workers(work)


def test_as_many_processes_work_as_are_allowed() -> None:
    async def work(pool: WorkerPool) -> None:
        while len(pool.idle_pids) < 2:  # noqa: ASYNC110 - the second one starts beside the first images
            await asyncio.sleep(0.001)
        killed = pool.idle_pids[0]
        os.kill(killed, signal.SIGKILL)
        # The next image, or the one after it, finds it dead.
        await asyncio.to_thread(os.waitid, os.P_PID, killed, os.WEXITED | os.WNOWAIT)
        found = await asyncio.gather(*(pool.read(b"x" * 1000, Detail.HIGH) for _ in range(20)))
        assert all(isinstance(one, ReadImage) for one in found)
        assert len(pool.idle_pids) <= 2

    with_quick_workers(work, num_workers=2)


def test_too_many_images_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "MAX_WAITING", 3)

    async def work(pool: WorkerPool) -> None:
        [pid] = pool.idle_pids
        os.kill(pid, signal.SIGSTOP)
        waiting = [read(pool, b"a") for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="too many images"):
            await read(pool, b"a")
        os.kill(pid, signal.SIGCONT)
        assert all(isinstance(found, ReadImage) for found in await asyncio.gather(*waiting))
        assert isinstance(await read(pool, b"a"), ReadImage)

    with_quick_workers(work)


def test_close_tells_those_who_wait() -> None:
    async def work(pool: WorkerPool) -> None:
        [pid] = pool.idle_pids
        os.kill(pid, signal.SIGSTOP)
        waiting = [read(pool, b"a"), read(pool, b"b")]
        await until_busy(pool)
        await pool.close()
        for task in waiting:
            with pytest.raises(ShuttingDown):
                await task
        with pytest.raises(ShuttingDown):
            await read(pool, b"a")

    with_quick_workers(work)


def test_a_process_that_does_not_start_is_told() -> None:
    async def run() -> None:
        pool = WorkerPool(setup_of(), 1, command=("false",))
        with pytest.raises(WorkersUnusable, match="does not start"):
            await pool.start()
        await pool.close()

    asyncio.run(run())


def test_the_real_worker_has_limits_and_neither_torch_nor_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret-of-the-server")
    folder = write_image_family(tmp_path, "llava")

    def check_process(process: Path) -> None:
        assert "torch" not in (process / "maps").read_text()
        assert b"secret-of-the-server" not in (process / "environ").read_bytes()
        limits = (process / "limits").read_text()
        assert "Max core file size        0" in limits
        assert f"Max address space         {400 << 20}" in limits

    async def run() -> None:
        # Beside the libraries there is room for an image of a megapixel and not for one of 25.
        pool = WorkerPool(setup_of(str(folder), memory_bytes=400 << 20), 1)
        facts = await pool.start()
        assert (facts.kind, facts.placeholder) == ("llava", "<image>")
        found = await read(pool, picture(1000, 1000, kind="JPEG"))
        assert isinstance(found, ReadImage)
        assert found.answer.text == "<image>" * 16
        assert found.tensors[0].shape == (1, 3, 16, 16)
        refusal = await read(pool, png_of_zeros(5000, 5000))
        assert isinstance(refusal, ImageRefusal)
        assert "memory" in refusal.reason
        assert isinstance(await read(pool, picture(30, 20)), ReadImage)
        [pid] = pool.idle_pids
        check_process(Path(f"/proc/{pid}"))
        await pool.close()

    asyncio.run(run())


def test_a_checkpoint_without_a_processor_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    async def run() -> None:
        pool = WorkerPool(setup_of(str(tmp_path)), 1)
        with pytest.raises(WorkersUnusable, match="of an unknown class are not supported"):
            await pool.start()
        await pool.close()

    asyncio.run(run())
