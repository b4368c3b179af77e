"""A small proxy that gives each connection to the next instance that is ready, as balancers of connections do."""

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self

import httpx

LOOK_S = 0.1  # between two looks at an instance
START_LIMIT_S = 10.0


class RoundRobinProxy:
    """A context manager around a proxy on a free port of the loopback. It never sends a call twice.

    `add` and `remove` may be called from any thread. An instance gets connections while its /health/ready is 200.
    """

    def __init__(self) -> None:
        self._ready: dict[int, bool] = {}  # by port
        self._turn = 0
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.num_by_port: dict[int, int] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(START_LIMIT_S)
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(START_LIMIT_S)

    def add(self, port: int) -> None:
        self._loop.call_soon_threadsafe(self._ready.setdefault, port, False)

    def remove(self, port: int) -> None:
        self._loop.call_soon_threadsafe(self._ready.pop, port, False)

    def is_used(self, port: int) -> bool:
        """Whether new connections may go to this instance."""
        return self._ready.get(port, False)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        looks = asyncio.create_task(self._look_often())
        self._started.set()
        await self._over.wait()
        looks.cancel()
        server.close()
        await asyncio.gather(looks, return_exceptions=True)

    async def _look_often(self) -> None:
        async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
            while True:
                for port in list(self._ready):
                    is_ready = await self._look(client, port)
                    if port in self._ready:
                        self._ready[port] = is_ready
                await asyncio.sleep(LOOK_S)

    async def _look(self, client: httpx.AsyncClient, port: int) -> bool:
        try:
            answer = await client.get(f"http://127.0.0.1:{port}/health/ready", headers={"connection": "close"})
        except httpx.TransportError:
            return False
        return answer.status_code == httpx.codes.OK

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready = [port for port, is_ready in self._ready.items() if is_ready]
        if not ready:
            writer.close()
            return
        self._turn += 1
        port = ready[self._turn % len(ready)]
        self.num_by_port[port] = self.num_by_port.get(port, 0) + 1
        try:
            behind, ahead = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, ahead), _pump(behind, writer))


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    target.close()
