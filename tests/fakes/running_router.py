"""A router in a thread: the real server and engine with a byte tokenizer, in front of a fake shard on a Unix socket."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import uvloop
from textmill_router.health.loop_watchdog import LoopWatchdog
from textmill_router.lifecycle import bind, follow_files, make_server, start_backend
from textmill_router.media.url_fetch import UrlFetcher
from textmill_router.outlets import open_outlets
from textmill_router.scheduler.scheduler import SchedulerStats
from textmill_router.serving.service import Service
from textmill_router.settings import Settings

from tests.fakes.byte_tokenizer import write_byte_tokenizer
from tests.fakes.fake_shard import FakeShard, FakeShardOptions

START_TIMEOUT_S = 20.0
WAIT_TIMEOUT_S = 10.0
READY_TIMEOUT_S = 60.0  # the processes that read images import transformers first, at a low priority


class RunningRouter:
    """A context manager that runs the router.

    With `is_loading` the shard is not ready at first. A `model` folder takes the place of the byte tokenizer's folder.
    `make_shard` makes another shard in the place of the fake shard, from a socket and the model folder. A `fetcher`
    gets the images of URLs in the place of the router's own.
    """

    def __init__(
        self,
        folder: Path,
        options: FakeShardOptions | None = None,
        *,
        is_loading: bool = False,
        model: Path | None = None,
        make_shard: Callable[[Path, Path], Any] | None = None,
        fetcher: UrlFetcher | None = None,
        **settings: Any,
    ) -> None:
        socket_path = folder / "shard.sock"
        model_dir = write_byte_tokenizer(folder / "model") if model is None else model
        self.shard = FakeShard(socket_path, options) if make_shard is None else make_shard(socket_path, model_dir)
        if is_loading:
            self.shard.load("weights", 0.5)
        self._is_loading = is_loading
        self._fetcher = fetcher
        self.settings = Settings(
            **{
                "model_dir": str(model_dir),
                "model_id": "fake/model",
                "shard_uds_path": (str(socket_path),),
                "hostname": "127.0.0.1",
                "port": 0,
                **settings,
            }
        )
        self.service: Service
        self.holders: list[socket.socket] = []  # connections that a test keeps and closes itself
        self._started: Future[int] = Future()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self.shard.__enter__()
        self._thread.start()
        self.port = self._started.result(START_TIMEOUT_S)
        self.url = f"http://127.0.0.1:{self.port}"
        if not self._is_loading:
            try:
                self.wait_until_healthy()
            except BaseException:
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(START_TIMEOUT_S)
        self.shard.__exit__(kind, error, trace)
        assert not self._thread.is_alive()

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=WAIT_TIMEOUT_S, trust_env=False, **options)

    def send(self, route: str, body: object, headers: Mapping[str, str] | None = None) -> socket.socket:
        """Send a call, and return its connection without a wait for the answer. The caller closes the connection."""
        data = json.dumps(body).encode()
        fields = {"host": "x", "content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
        head = f"POST {route} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        connection = socket.create_connection(("127.0.0.1", self.port), WAIT_TIMEOUT_S)
        connection.sendall(head.encode() + b"\r\n" + data)
        return connection

    def stats(self) -> SchedulerStats:
        """Return the numbers of queue, slots and blocks. Call this in the server's loop."""
        stats = self.service.open_backend().engine.stats()
        assert stats is not None
        return stats

    def wait_until_counts(self, *, running: int, waiting: int) -> None:
        """Wait until so many requests run, and so many wait."""
        self.wait_until(
            lambda: (self.stats().num_running, self.stats().num_waiting) == (running, waiting),
            f"{running} run and {waiting} wait",
        )

    def wait_until_free(self) -> None:
        """Wait until no request, permit, slot or block is in use."""
        self.wait_until_counts(running=0, waiting=0)
        self.wait_until(lambda: self.service.permits.held == 0, "all permits are back")

        def is_whole() -> bool:
            stats = self.stats()
            is_free = stats.num_free_slots == stats.num_slots
            return is_free and stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks

        self.wait_until(is_whole, "slots and blocks are free")

    def in_loop(self, ask: Callable[[], Any]) -> Any:
        """Call `ask` in the server's loop, and return its result."""

        async def call() -> Any:
            return ask()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(WAIT_TIMEOUT_S)

    def wait_until(self, condition: Callable[[], bool], what: str, *, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Wait until the condition holds, by looks in the server's loop."""

        async def watch() -> None:
            async with asyncio.timeout(timeout_s):
                while not condition():  # noqa: ASYNC110 - no code that makes the condition true could set an event
                    await asyncio.sleep(0.002)

        try:
            asyncio.run_coroutine_threadsafe(watch(), self.loop).result(timeout_s + 1)
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s} s: {what}") from None

    def wait_until_healthy(self) -> None:
        self.wait_until(lambda: self.service.is_healthy, "the router is ready", timeout_s=READY_TIMEOUT_S)

    def _serve(self) -> None:
        uvloop.run(self._run())

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._leave = asyncio.Event()
        self.outlets = open_outlets(self.settings)
        self.service = Service(self.settings, self.outlets.spans, self.outlets.watcher_of, self._fetcher)
        server = make_server(self.service)
        listener = bind(self.settings)
        files = asyncio.create_task(follow_files(self.service, server))
        http = asyncio.create_task(server.serve(sockets=[listener]))
        backend = asyncio.create_task(start_backend(self.service))
        self._started.set_result(listener.getsockname()[1])
        async with LoopWatchdog(on_beat=self.service.health.look):
            await self._leave.wait()
        if backend.done():
            await backend.result().stop()
            await self.service.close_backend()
        backend.cancel()
        files.cancel()
        await asyncio.gather(backend, files, return_exceptions=True)
        server.should_exit = True
        await http
        await self.outlets.close()
