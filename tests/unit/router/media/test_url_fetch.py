"""Fetches from local stand-ins of hosts; addresses that are not of the internet get not one packet."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from textmill_router.errors import ImageCode, ImageRefused
from textmill_router.media import url_fetch
from textmill_router.media.url_fetch import Streams, UrlFetcher

from tests.fakes.certificates import write_pair
from tests.fakes.image_hosts import IMAGE, PUBLIC, Hosts, answer, redirecting, saying

FIELD = "inputs"


def fetch(hosts: Hosts, url: str, *, domains: Sequence[str] = ("*",), max_bytes: int = 10**6) -> bytes:
    async def run() -> bytes:
        async with hosts.listening():
            fetcher = hosts.fetcher(*domains)
            return await fetcher.fetch(url, field=FIELD, max_bytes=max_bytes)

    return asyncio.run(run())


def refusal(hosts: Hosts, url: str, **options: object) -> ImageRefused:
    with pytest.raises(ImageRefused) as found:
        fetch(hosts, url, **options)  # type: ignore[arg-type]
    assert found.value.field == FIELD
    return found.value


def test_an_image_is_fetched_from_the_address_that_was_checked() -> None:
    hosts = Hosts(saying(answer()))
    assert fetch(hosts, "http://a.com/cat.png?x=1") == IMAGE
    assert hosts.connected == [(PUBLIC, 80)]
    [request] = hosts.requests
    assert request.startswith(b"GET /cat.png?x=1 HTTP/1.1\r\nHost: a.com\r\n")
    assert b"cookie" not in request.lower()
    assert b"authorization" not in request.lower()


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(Hosts(saying(answer())), "http://a.com/") == IMAGE


@pytest.mark.parametrize(
    "data",
    [
        [answer(headers=["Connection: close"])[:100], answer(headers=["Connection: close"])[100:]],
        [b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n", IMAGE],  # the end is the end
        [
            b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(IMAGE), IMAGE),
        ],
    ],
    ids=["in parts", "without a length", "chunked"],
)
def test_the_forms_of_http_are_read(data: list[bytes]) -> None:
    assert fetch(Hosts(saying(*data)), "http://a.com/") == IMAGE


def test_tls_is_checked_for_the_name_of_the_host(tmp_path: Path) -> None:
    authority = write_pair(tmp_path)

    async def run(host: str) -> bytes:
        hosts = Hosts(saying(answer()))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
        fetcher = hosts.fetcher("*")
        assert fetcher._tls is not None
        authority.configure_trust(fetcher._tls)
        async with hosts.listening(context):
            return await fetcher.fetch(f"https://{host}/", field=FIELD, max_bytes=10**6)

    assert asyncio.run(run("localhost")) == IMAGE
    with pytest.raises(ImageRefused) as found:
        asyncio.run(run("other.com"))
    assert found.value.code is ImageCode.FETCH_FAILED


def test_three_redirects_are_followed_and_four_are_not() -> None:
    hosts = Hosts(redirecting("/b", "http://c.com/", "/last"))
    assert fetch(hosts, "http://a.com/") == IMAGE
    assert hosts.resolved == ["a.com", "a.com", "c.com", "c.com"]
    found = refusal(Hosts(redirecting("/1", "/2", "/3", "/4")), "http://a.com/")
    assert found.code is ImageCode.FETCH_FAILED


# Names that lead to this machine, each in the form in which a system's resolver gives the address.
HOSTILE = {
    "http://localhost/": "127.0.0.1",
    "http://127.0.0.1/": "127.0.0.1",
    "http://2130706433/": "127.0.0.1",
    "http://0x7f000001/": "127.0.0.1",
    "http://0177.0.0.1/": "127.0.0.1",
    "http://127.1/": "127.0.0.1",
    "http://0/": "0.0.0.0",
    "http://[::1]/": "::1",
    "http://[::ffff:127.0.0.1]/": "::ffff:127.0.0.1",
    "http://[::ffff:7f00:1]/": "::ffff:127.0.0.1",
    "http://169.254.169.254/latest/meta-data/": "169.254.169.254",
    "http://inside.example/": "10.0.0.7",
}


class Ports:
    """Listeners on the ports 80 of this machine's addresses, as far as the system lets; counts connections."""

    def __init__(self) -> None:
        self.num_connections = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Ports":
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with contextlib.suppress(OSError):
                listener = socket.socket(family, socket.SOCK_STREAM)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address, 80))
                listener.listen()
                self._sockets.append(listener)
                self._threads.append(threading.Thread(target=self._count, args=(listener,)))
                self._threads[-1].start()
        return self

    def __exit__(self, *error: object) -> None:
        for listener in self._sockets:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for thread in self._threads:
            thread.join()

    @property
    def is_open(self) -> bool:
        return bool(self._sockets)

    def _count(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.num_connections += 1
            connection.close()


@pytest.mark.parametrize("url", HOSTILE)
def test_no_packet_goes_to_this_machine_by_the_resolver_of_the_system(url: str) -> None:
    """The fetcher with its own resolver and connections, before listeners on the ports that URLs may have."""
    with Ports() as ports:
        if not ports.is_open:
            pytest.skip("needs the right to listen on port 80")
        with socket.create_connection(ports._sockets[0].getsockname()):
            pass  # so that the count is known to count
        with pytest.raises(ImageRefused) as found:
            asyncio.run(UrlFetcher(["*"]).fetch(url, field=FIELD, max_bytes=1000))
        assert found.value.code is ImageCode.URL_NOT_ALLOWED
    assert ports.num_connections == 1


@pytest.mark.parametrize(("url", "address"), HOSTILE.items())
def test_no_connection_is_opened_to_an_address_of_the_inside(url: str, address: str) -> None:
    host = url.split("/")[2].strip("[]")
    for hosts, asked in (
        (Hosts(saying(answer()), {host: [[address]]}), url),
        (Hosts(saying(answer()), {host: [[PUBLIC, address]]}), url),
    ):
        assert refusal(hosts, asked).code is ImageCode.URL_NOT_ALLOWED
        assert hosts.connected == []


@pytest.mark.parametrize("url", HOSTILE)
def test_a_redirect_to_the_inside_is_not_followed(url: str) -> None:
    host = url.split("/")[2].strip("[]")
    hosts = Hosts(redirecting(url), {host: [[HOSTILE[url]]]})
    assert refusal(hosts, "http://a.com/").code is ImageCode.URL_NOT_ALLOWED
    assert hosts.connected == [(PUBLIC, 80)]


def test_a_name_that_changes_is_asked_once() -> None:
    hosts = Hosts(saying(answer()), {"a.com": [[PUBLIC], ["127.0.0.1"]]})
    assert fetch(hosts, "http://a.com/") == IMAGE
    assert hosts.resolved == ["a.com"]
    changed = Hosts(redirecting("/again"), {"a.com": [[PUBLIC], ["127.0.0.1"]]})
    assert refusal(changed, "http://a.com/").code is ImageCode.URL_NOT_ALLOWED
    assert changed.connected == [(PUBLIC, 80)]


def test_all_refusals_of_urls_say_one_sentence() -> None:
    async def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    inside = Hosts(saying(answer()), {"a.com": [["10.0.0.1"]]})
    sentences = {
        str(refusal(inside, "http://a.com/")),
        str(refusal(inside, "http://user:secret@a.com/")),
        str(refusal(inside, "file:///etc/passwd")),
        str(refusal(inside, "http://a.com:22/")),
        str(refusal(inside, "http://b.com/", domains=("a.com",))),
        str(refusal(Hosts(redirecting("http://10.0.0.1/"), {"10.0.0.1": [["10.0.0.1"]]}), "http://a.com/")),
    }
    nowhere = Hosts(saying(answer()))
    nowhere.resolve = unknown  # type: ignore[method-assign]
    sentences.add(str(refusal(nowhere, "http://nowhere.com/")))
    assert len(sentences) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([answer(status="404 Not Found")], "status 404"),
        ([answer(status="302 Found")], "status 302"),  # without a location
        ([answer(content_type="text/html")], "another type"),
        ([answer(content_type="")], "another type"),
        ([answer(headers=["Content-Encoding: gzip"])], "compressed"),
        ([answer()[:-1]], "before the end"),
        ([b"HTTP/1.1 200 OK\r\n"], "before the end"),
        ([], "before the end"),
        ([b"220 smtp ready\r\n\r\n"], "did not speak HTTP"),
        ([b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000], "header"),
    ],
)
def test_hosts_that_give_no_image_are_told(data: list[bytes], words: str) -> None:
    found = refusal(Hosts(saying(*data)), "http://a.com/")
    assert found.code is ImageCode.FETCH_FAILED
    assert words in str(found)


@pytest.mark.parametrize(
    "data",
    [
        [answer(bytes(2000))],
        [b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n", *([bytes(1000)] * 50)],
        [b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 99999999999\r\n\r\n"],
    ],
    ids=["with a length", "without end", "a length alone"],
)
def test_bytes_are_counted_while_they_come(data: list[bytes]) -> None:
    found = refusal(Hosts(saying(*data)), "http://a.com/", max_bytes=1500)
    assert found.code is ImageCode.TOO_LARGE


def test_a_host_of_one_byte_a_second_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_fetch, "FETCH_TIMEOUT_S", 0.3)
    asked = asyncio.Event()

    async def slow(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer()[:-1000])
        for byte in IMAGE[-1000:]:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(1)
            asked.set()

    found = refusal(Hosts(slow), "http://a.com/")
    assert found.code is ImageCode.FETCH_FAILED
    assert not asked.is_set()


def test_a_host_that_does_not_answer_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_fetch, "CONNECT_TIMEOUT_S", 0.1)

    async def never(address: str, port: int, tls: ssl.SSLContext | None, host: str) -> Streams:
        await asyncio.Event().wait()
        raise AssertionError

    hosts = Hosts(saying(answer()))
    hosts.connect = never  # type: ignore[method-assign]
    assert refusal(hosts, "http://a.com/").code is ImageCode.FETCH_FAILED


def test_without_domains_no_name_is_asked() -> None:
    hosts = Hosts(saying(answer()))
    assert refusal(hosts, "http://a.com/", domains=()).code is ImageCode.URL_NOT_ALLOWED
    assert hosts.resolved == []
