"""A client that is gone without a word is noticed by the kernel's probes."""

import asyncio
import socket
import struct
import sys

import pytest
from textmill_router.http import keepalive
from textmill_router.http.keepalive import notice_silence

LIMIT_S = 20.0


def test_options_of_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        notice_silence(client, 2.5)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
        if sys.platform == "linux":
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2500


def test_a_unix_socket_needs_no_probes() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        notice_silence(ours, 1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_REPAIR, which takes a socket away without a word, is Linux's")
def test_client_that_vanishes_without_a_word_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepalive, "IDLE_S", 1)
    monkeypatch.setattr(keepalive, "INTERVAL_S", 1)
    tcp_repair = 19
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            notice_silence(accepted, 5.0)
            try:
                client.setsockopt(socket.IPPROTO_TCP, tcp_repair, struct.pack("i", 1))
            except PermissionError:
                client.close()
                pytest.skip("the kernel lets only an administrator take a socket away without a word")
            client.close()  # sends neither an end nor a reset

            async def read() -> bytes:
                accepted.setblocking(False)
                async with asyncio.timeout(LIMIT_S):
                    return await asyncio.get_running_loop().sock_recv(accepted, 1)

            with pytest.raises(ConnectionError):
                asyncio.run(read())
