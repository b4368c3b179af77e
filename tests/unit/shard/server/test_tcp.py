"""The TCP port takes clients that show a certificate of the authority, and nobody else."""

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
import trustme
from textmill_proto.v1 import shard_pb2, shard_pb2_grpc
from textmill_shard.engine.status import ShardStatus
from textmill_shard.server.server import ShardService, start_server
from textmill_shard.server.tcp import TcpPlace, TlsFiles, TlsFilesError

LIMIT_S = 10.0


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def write_files(folder: Path, authority: trustme.CA, *names: str) -> TlsFiles:
    """Write a certificate of the authority for these names, its key and the authority's own certificate."""
    pair = authority.issue_cert(*(names or ("127.0.0.1",)))
    pair.private_key_pem.write_to_path(str(folder / "key.pem"))
    (folder / "cert.pem").write_bytes(b"".join(part.bytes() for part in pair.cert_chain_pems))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return TlsFiles(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")


def credentials(trusted: trustme.CA, shown: trustme.CA | None) -> grpc.ChannelCredentials:
    """Return what a client shows and whom it trusts."""
    if shown is None:
        return grpc.ssl_channel_credentials(trusted.cert_pem.bytes())
    pair = shown.issue_cert("router.example")
    chain = b"".join(part.bytes() for part in pair.cert_chain_pems)
    return grpc.ssl_channel_credentials(trusted.cert_pem.bytes(), pair.private_key_pem.bytes(), chain)


def ask(channel: grpc.Channel) -> shard_pb2.HealthReport:
    with closing(channel):
        report: shard_pb2.HealthReport = shard_pb2_grpc.ShardStub(channel).Health(
            shard_pb2.HealthRequest(), timeout=LIMIT_S
        )
        return report


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def place(tmp_path: Path, authority: trustme.CA) -> TcpPlace:
    return TcpPlace(free_address(), write_files(tmp_path, authority))


@pytest.fixture
def server(tmp_path: Path, place: TcpPlace) -> Iterator[grpc.Server]:
    server = start_server(ShardService(ShardStatus()), tmp_path / "s", place)
    yield server
    server.stop(0).wait(LIMIT_S)


@pytest.mark.usefixtures("server")
def test_client_of_the_authority_is_served_and_the_socket_stays(
    tmp_path: Path, place: TcpPlace, authority: trustme.CA
) -> None:
    report = ask(grpc.secure_channel(place.address, credentials(authority, authority)))
    assert report.state == shard_pb2.SHARD_STATE_LOADING
    assert ask(grpc.insecure_channel(f"unix:{tmp_path / 's'}")).state == shard_pb2.SHARD_STATE_LOADING


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("shown", ["nothing", "of another authority"])
def test_client_without_a_certificate_of_the_authority_gets_nowhere(
    place: TcpPlace, authority: trustme.CA, shown: str
) -> None:
    other = None if shown == "nothing" else trustme.CA()
    with pytest.raises(grpc.RpcError) as caught:
        ask(grpc.secure_channel(place.address, credentials(authority, other)))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.usefixtures("server")
def test_plain_tcp_gets_nowhere_and_is_cut_off(place: TcpPlace, authority: trustme.CA) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(grpc.insecure_channel(place.address))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    host, _, port = place.address.rpartition(":")
    with socket.create_connection((host, int(port)), LIMIT_S) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        while connection.recv(1000):  # a TLS alert, then the end
            pass
    ask(grpc.secure_channel(place.address, credentials(authority, authority)))


@pytest.mark.usefixtures("server")
def test_a_router_does_not_take_a_shard_of_another_authority(place: TcpPlace, authority: trustme.CA) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(grpc.secure_channel(place.address, credentials(trustme.CA(), authority)))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.usefixtures("server")
def test_files_that_change_count_from_the_next_handshake_on(tmp_path: Path, place: TcpPlace) -> None:
    renewed = trustme.CA()
    write_files(tmp_path, renewed)
    ask(grpc.secure_channel(place.address, credentials(renewed, renewed)))
    (tmp_path / "key.pem").write_text("no key")
    ask(grpc.secure_channel(place.address, credentials(renewed, renewed)))


@pytest.mark.parametrize("name", ["cert.pem", "key.pem", "ca.pem"])
@pytest.mark.parametrize("content", [None, b"no PEM"])
def test_files_that_cannot_be_used_are_named(tmp_path: Path, place: TcpPlace, name: str, content: bytes | None) -> None:
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(TlsFilesError, match=r"cert.pem, .*key.pem and .*ca.pem are no certificate.*--shard-tls-ca"):
        start_server(ShardService(ShardStatus()), tmp_path / "s", place)


@pytest.mark.usefixtures("server")
def test_an_address_that_is_taken_is_an_error(tmp_path: Path, place: TcpPlace) -> None:
    with pytest.raises(OSError, match=f"cannot listen on {place.address} .--shard-address."):
        start_server(ShardService(ShardStatus()), tmp_path / "other", place)
