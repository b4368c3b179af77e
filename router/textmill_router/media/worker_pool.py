"""The processes that read images, which are ended and replaced when an image takes too long or too much memory."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from textmill_router.errors import Overloaded, ShuttingDown
from textmill_router.media.frames import NUM_BYTES, BrokenFrame, read_bytes, read_head, write_frame
from textmill_router.media.image_source import Detail
from textmill_router.media.media_item import TensorPart
from textmill_router.media.worker_messages import ImageAnswer, ImageRefusal, ProcessorFacts, WorkerSetup
from textmill_router.worker_process import WorkerProcess

WORKER_COMMAND = (sys.executable, "-m", "textmill_router.media.worker")
READ_CPU_S = 10  # CPU time of one image
READ_TIMEOUT_S = 30.0  # the time of the clock, which other work on the machine makes longer than the CPU time
WORKER_MEMORY_BYTES = 2 << 30  # address space
MAX_WAITING = 64  # images in work or before it; more get 429
START_TIMEOUT_S = 60.0
# One thread for each library of numbers, because an image is read by one process and processes are counted.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

T = TypeVar("T")


class WorkersUnusable(Exception):
    """No worker can read images of this checkpoint. The text says why."""


class _WorkerDied(Exception):
    """The worker process ended, or was killed because an image took too long."""


@dataclass(frozen=True, slots=True)
class ReadImage:
    """What a worker made of an image."""

    answer: ImageAnswer
    tensors: tuple[TensorPart, ...]


class _Worker(WorkerProcess):
    """A process that has read the checkpoint's processor and reads one image at a time. Threads of the pool ask."""

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__(command, _ONE_THREAD)

    def start(self, setup: WorkerSetup) -> ProcessorFacts:
        """Wait until the process has read the checkpoint's files. Raises WorkersUnusable and _WorkerDied."""
        head = self._ask(asdict(setup))
        if "reason" in head:
            raise WorkersUnusable(head["reason"])
        return ProcessorFacts(**{name: value for name, value in head.items() if name != NUM_BYTES})

    def read(self, data: bytes, detail: Detail) -> ReadImage | ImageRefusal:
        """Give the process an image and wait for its answer. Raises _WorkerDied, at once after `kill`."""
        head = self._ask({"detail": detail.value}, data)
        if "refusal" in head:
            return ImageRefusal(**head["refusal"])
        tensors = []
        try:
            for one in head["tensors"]:
                blob = read_bytes(self.stdout, one["num_bytes"])
                tensors.append(TensorPart(one["name"], one["dtype"], tuple(one["shape"]), blob))
        except BrokenFrame:
            raise _WorkerDied from None
        answer = head["answer"]
        grid = None if answer["grid"] is None else (answer["grid"][0], answer["grid"][1], answer["grid"][2])
        return ReadImage(ImageAnswer(answer["text"], grid, answer["num_tensor_bytes"]), tuple(tensors))

    def _ask(self, head: dict[str, Any], data: bytes = b"") -> dict[str, Any]:
        try:
            write_frame(self.stdin, head, [data])
            return read_head(self.stdout)
        except (OSError, BrokenFrame, json.JSONDecodeError):
            raise _WorkerDied from None


@dataclass(slots=True)
class _Seats:
    """The idle workers, and the bound on all workers."""

    has_room: asyncio.Semaphore
    threads: ThreadPoolExecutor
    idle: list[_Worker] = field(default_factory=list)


class WorkerPool:
    """Reads images in at most `num_workers` processes. All methods run in the event loop."""

    def __init__(
        self,
        setup: WorkerSetup,
        num_workers: int,
        timeout_s: float = READ_TIMEOUT_S,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self._command = command
        self._setup = setup
        self._timeout_s = timeout_s
        self._seats = _Seats(asyncio.Semaphore(num_workers), ThreadPoolExecutor(num_workers, "images"))
        self._num_workers = num_workers
        self._num_alive = 0
        self._num_waiting = 0
        self._running: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    @property
    def idle_pids(self) -> list[int]:
        """The ids of the processes that wait for an image."""
        return [worker.pid for worker in self._seats.idle]

    async def start(self) -> ProcessorFacts:
        """Start the first worker; the others start beside the first images. Raises WorkersUnusable."""
        worker, facts = await self._start()
        self._seats.idle.append(worker)
        self._fill()
        return facts

    async def read(self, data: bytes, detail: Detail) -> ReadImage | ImageRefusal:
        """Return what an image becomes.

        Raises Overloaded where too many images wait or the machine is too busy to read this one, and ShuttingDown.
        """
        if self._is_closed:
            raise ShuttingDown("the server is stopping", retry_after_s=1)
        if self._num_waiting >= MAX_WAITING:
            raise Overloaded("Model is overloaded: too many images are being read", retry_after_s=1)
        self._num_waiting += 1
        # The task outlives a client that leaves, because a worker that has an image must be asked to its end.
        task = asyncio.create_task(self._read(data, detail))
        self._running.add(task)
        task.add_done_callback(self._on_done)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not (self._is_closed and task.cancelled()):
                raise
            raise ShuttingDown("the server is stopping", retry_after_s=1) from None

    async def close(self) -> None:
        """End the workers. Calls that wait for an image are told that the server stops."""
        self._is_closed = True
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        while self._seats.idle:
            self._seats.idle.pop().reap()
        self._seats.threads.shutdown(wait=False)

    def _on_done(self, task: "asyncio.Task[Any]") -> None:
        self._num_waiting -= 1
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # a client that has left reads no error

    async def _read(self, data: bytes, detail: Detail) -> ReadImage | ImageRefusal:
        async with self._seats.has_room:
            worker = await self._take()
            try:
                found = await self._in_thread(worker, lambda: worker.read(data, detail), self._timeout_s)
            except _WorkerDied:
                self._fill()
                limits = f"{self._setup.cpu_s} s of a core or {self._setup.memory_bytes >> 20} MiB"
                return ImageRefusal(f"reading it takes more than {limits}", is_final=False)
            except TimeoutError:  # an image that works for so long is ended by its CPU time before
                self._fill()
                raise Overloaded(
                    f"Model is overloaded: an image was not read within {self._timeout_s:g} s", retry_after_s=1
                ) from None
            self._seats.idle.append(worker)
            return found

    def _fill(self) -> None:
        """Start workers in the background until there are as many as images may be read at a time."""
        task = asyncio.create_task(self._start_missing())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _start_missing(self) -> None:
        while self._num_alive < self._num_workers:
            async with self._seats.has_room:
                if self._num_alive >= self._num_workers:  # an image has started one
                    return
                try:
                    worker, _ = await self._start()
                except WorkersUnusable:
                    return  # the next image tries again, and tells
                self._seats.idle.append(worker)

    async def _take(self) -> _Worker:
        """Return an idle worker, or a new one. Raises Overloaded where none starts."""
        while self._seats.idle:
            worker = self._seats.idle.pop()
            if worker.is_alive:
                return worker
            worker.reap()
            self._num_alive -= 1
        try:
            return (await self._start())[0]
        except WorkersUnusable as error:
            raise Overloaded(f"no image can be read now: {error}", retry_after_s=5) from error

    async def _start(self) -> tuple[_Worker, ProcessorFacts]:
        worker = _Worker(self._command)
        self._num_alive += 1
        try:
            return worker, await self._in_thread(worker, lambda: worker.start(self._setup), START_TIMEOUT_S)
        except (_WorkerDied, TimeoutError):
            raise WorkersUnusable("the process that reads images does not start; the log may say why") from None

    async def _in_thread(self, worker: _Worker, ask: Callable[[], T], timeout_s: float) -> T:
        """Ask in a thread. A worker that does not answer in time, or whose answer nobody awaits any more, is killed."""
        answer = asyncio.get_running_loop().run_in_executor(self._seats.threads, ask)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(answer)
        except BaseException:
            worker.kill()  # so the thread comes back
            with contextlib.suppress(_WorkerDied, WorkersUnusable):
                await answer
            worker.reap()
            self._num_alive -= 1
            raise
