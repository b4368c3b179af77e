"""Fetches images by `http(s)` URLs, under the rules of `url_guard.py`.

A name is resolved once, all its addresses are checked, and the connection goes to one of these addresses, so that a
name server cannot give another address later. The bytes of an answer are counted while they come.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence

import httptools

from textmill_router.errors import ImageCode, ImageRefused
from textmill_router.media.data_url import too_many_bytes
from textmill_router.media.url_guard import Target, UrlRefused, check_addresses, redirect_of, target_of

MAX_REDIRECTS = 3
CONNECT_TIMEOUT_S = 5.0
FETCH_TIMEOUT_S = 10.0  # of one image, with its redirects
MAX_HEAD_BYTES = 64 << 10
_PART_BYTES = 64 << 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
# Returns the addresses of a host. Raises OSError.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
# Connects to an address and port, with TLS for the name of a host where there is a context. Raises OSError.
Connect = Callable[[str, int, ssl.SSLContext | None, str], Awaitable[Streams]]


class _FetchFailed(Exception):
    """The host did not give an image. The text says why."""


class _TooLong(Exception):
    """The image has more bytes than it may have."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system for the addresses of a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def connect(address: str, port: int, tls: ssl.SSLContext | None, host: str) -> Streams:
    """Open a connection to an address, without a proxy."""
    name = host if tls is not None else None
    return await asyncio.open_connection(address, port, ssl=tls, server_hostname=name, limit=_PART_BYTES)


class UrlFetcher:
    """Fetches images from the hosts of `domains`; none where there are no domains."""

    def __init__(self, domains: Sequence[str], *, resolve: Resolve = resolve, connect: Connect = connect) -> None:
        self._domains = tuple(domains)
        self._resolve = resolve
        self._connect = connect
        self._tls = ssl.create_default_context() if domains else None

    async def fetch(self, url: str, *, field: str, max_bytes: int) -> bytes:
        """Return the bytes of an image. Raises ImageRefused with the `field` of the URL."""
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                return await self._follow(target_of(url, self._domains), max_bytes)
        except UrlRefused:
            # One sentence for every rule: what a call may not reach, it may not learn of either.
            message = (
                f"`{field}` is not an allowed URL of an image: give a data: URL, or a host of --image-domains that the "
                "internet can reach"
            )
            raise ImageRefused(message, field=field, code=ImageCode.URL_NOT_ALLOWED) from None
        except _TooLong:
            raise too_many_bytes(field, max_bytes) from None
        except (_FetchFailed, TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            reason = str(error) if isinstance(error, _FetchFailed) else "the host did not answer as it should in time"
            message = f"`{field}`: the image could not be fetched: {reason}"
            raise ImageRefused(message, field=field, code=ImageCode.FETCH_FAILED) from None

    async def _follow(self, target: Target, max_bytes: int) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._get(target, max_bytes)
            if isinstance(answer, bytes):
                return answer
            target = redirect_of(target, answer, self._domains)
        raise _FetchFailed(f"there are more than {MAX_REDIRECTS} redirects")

    async def _get(self, target: Target, max_bytes: int) -> bytes | str:
        """Return the image, or the location of a redirect."""
        try:
            addresses = await self._resolve(target.host, target.port)
        except OSError:
            raise UrlRefused from None  # whether a name exists is not told
        except UnicodeError:  # a label of a name that is no label
            raise UrlRefused from None
        address = check_addresses(addresses)
        tls = self._tls if target.scheme == "https" else None
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await self._connect(address, target.port, tls, target.host)
        try:
            host = f"[{target.host}]" if ":" in target.host else target.host
            writer.write(
                f"GET {target.path} HTTP/1.1\r\nHost: {host}\r\nAccept: image/*\r\nAccept-Encoding: identity\r\n"
                "User-Agent: textmill\r\nConnection: close\r\n\r\n".encode()
            )
            return await _read_answer(reader, max_bytes)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class _Answer:
    """The parts of an answer that httptools has found so far. The names of the methods are the library's."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.num_bytes = 0
        self.has_head = False
        self.is_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        self.has_head = True

    def on_body(self, part: bytes) -> None:
        self.num_bytes += len(part)
        if self.num_bytes <= self._max_bytes:
            self.parts.append(part)

    def on_message_complete(self) -> None:
        self.is_complete = True


async def _read_answer(reader: asyncio.StreamReader, max_bytes: int) -> bytes | str:
    answer = _Answer(max_bytes)
    parser = httptools.HttpResponseParser(answer)
    num_head_bytes = 0
    is_checked = False
    while not answer.is_complete:
        part = await reader.read(_PART_BYTES)
        if not part:
            break
        try:
            parser.feed_data(part)
        except httptools.HttpParserError:
            raise _FetchFailed("the host did not speak HTTP") from None
        if not answer.has_head:
            num_head_bytes += len(part)
            if num_head_bytes > MAX_HEAD_BYTES:
                raise _FetchFailed("the header of the host's answer is too long")
            continue
        if not is_checked:
            status = parser.get_status_code()
            if status in _REDIRECTS and b"location" in answer.headers:
                return answer.headers[b"location"].decode("latin-1")
            _check_head(answer, status, max_bytes)
            is_checked = True
        if answer.num_bytes > max_bytes:
            raise _TooLong
    if not answer.has_head or not _is_whole(answer, parser):
        raise _FetchFailed("the host ended the connection before the end of the image")
    return b"".join(answer.parts)


def _check_head(answer: _Answer, status: int, max_bytes: int) -> None:
    if status != 200:
        raise _FetchFailed(f"the host answered with status {status}")
    content_type = answer.headers.get(b"content-type", b"").decode("latin-1").strip().lower()
    if not content_type.startswith(_TYPES):
        raise _FetchFailed("the host's answer is of another type than image/* and application/octet-stream")
    if answer.headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise _FetchFailed("the host's answer is compressed")
    length = answer.headers.get(b"content-length", b"0").strip()
    if length.isdigit() and int(length) > max_bytes:
        raise _TooLong


def _is_whole(answer: _Answer, parser: "httptools.HttpResponseParser") -> bool:
    """Whether the end of the connection is the end of the body, as without a length."""
    if answer.is_complete:
        return True
    return b"content-length" not in answer.headers and b"transfer-encoding" not in answer.headers
