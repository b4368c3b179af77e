"""Hosts of the internet, which one local listener stands in for: their names, their addresses and what they answer."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import trustme
from textmill_router.media.url_fetch import Streams, UrlFetcher

IMAGE = bytes(range(256)) * 40
PUBLIC = "93.184.215.14"
Script = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def answer(
    body: bytes = IMAGE, *, status: str = "200 OK", content_type: str = "image/png", headers: Sequence[str] = ()
) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def saying(*data: bytes) -> Script:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        for part in data:
            writer.write(part)
            await writer.drain()

    return script


class Hosts:
    """Names and addresses of the internet, all of which one local listener answers; notes what is asked."""

    def __init__(self, script: Script, names: dict[str, list[list[str]]] | None = None) -> None:
        self._script = script
        self._names = names or {}
        self.requests: list[bytes] = []
        self.connected: list[tuple[str, int]] = []
        self.resolved: list[str] = []
        self.port = 0

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the next addresses of a name, of which the last stay."""
        self.resolved.append(host)
        answers = self._names.get(host, [[PUBLIC]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def connect(self, address: str, port: int, tls: ssl.SSLContext | None, host: str) -> Streams:
        self.connected.append((address, port))
        name = host if tls is not None else None
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=tls, server_hostname=name)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                request = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(request)
                await self._script(request, writer)
        finally:
            writer.close()

    @contextlib.asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    @contextlib.contextmanager
    def listening_in_thread(self, tls: ssl.SSLContext | None = None) -> Iterator[None]:
        """Answer in a thread, for routers that run in another one."""
        is_up, end = threading.Event(), threading.Event()

        async def serve() -> None:
            async with self.listening(tls):
                is_up.set()
                await asyncio.to_thread(end.wait)

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        try:
            assert is_up.wait(10)
            yield
        finally:
            end.set()
            thread.join()

    def fetcher(self, *domains: str) -> UrlFetcher:
        """Return a fetcher that knows these hosts and no other network."""
        return UrlFetcher(domains, resolve=self.resolve, connect=self.connect)


@contextlib.contextmanager
def picture_by_tls(host: str, data: bytes) -> Iterator[tuple[Hosts, UrlFetcher]]:
    """Let a public host answer each request over TLS with a picture. The fetcher trusts the authority of the host."""
    hosts = Hosts(saying(answer(data)))
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(tls)
    fetcher = hosts.fetcher(host)
    assert fetcher._tls is not None
    authority.configure_trust(fetcher._tls)
    with hosts.listening_in_thread(tls):
        yield hosts, fetcher


def redirecting(*locations: str) -> Script:
    waiting = list(locations)

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        if waiting:
            writer.write(answer(b"", status="302 Found", headers=[f"Location: {waiting.pop(0)}"]))
        else:
            writer.write(answer())

    return script
