"""The wait for shards and router."""

import asyncio
import logging
import os
import ssl
import stat
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
from textmill_launcher.child_name import ChildName
from textmill_launcher.readiness import PhaseLog, ShardFailed, local_url, wait_for_router, wait_for_shard
from textmill_proto.v1 import shard_pb2, shard_pb2_grpc

from tests.fakes.certificates import write_pair

LIMIT_S = 20.0
RANK_1 = ChildName("shard", 1)


class LoadingShard(shard_pb2_grpc.ShardServicer):
    """A shard that answers Health with one report after the other, and then with the last one for ever."""

    def __init__(self, *reports: shard_pb2.HealthReport) -> None:
        self.reports = list(reports)

    async def Health(self, request: Any, context: Any) -> shard_pb2.HealthReport:
        return self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]


def loading(phase: str) -> shard_pb2.HealthReport:
    return shard_pb2.HealthReport(state=shard_pb2.SHARD_STATE_LOADING, phase=phase, progress=0.5)


READY = shard_pb2.HealthReport(state=shard_pb2.SHARD_STATE_READY)


def wait_for(socket: Path, *reports: shard_pb2.HealthReport) -> None:
    """Begin to wait before the shard has its socket, then start the shard."""

    async def main() -> None:
        server = grpc.aio.server()
        shard_pb2_grpc.add_ShardServicer_to_server(LoadingShard(*reports), server)
        waiting = asyncio.create_task(wait_for_shard(RANK_1, socket))
        await asyncio.sleep(0)
        assert not waiting.done()
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        try:
            await asyncio.wait_for(waiting, LIMIT_S)
            assert stat.S_IMODE(os.stat(socket).st_mode) == 0o600
        finally:
            await server.stop(None)

    asyncio.run(main())


def test_shard_is_waited_for_through_its_phases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "textmill_launcher"):
        wait_for(tmp_path / "s", loading("config"), loading("weights"), loading("weights"), READY)
    told = [message.partition(" took")[0] for message in caplog.messages]
    assert told[:3] == ["shard rank 1: starting", "shard rank 1: config", "shard rank 1: weights"]
    assert told[3].startswith("shard rank 1: ready after")


def test_failed_shard_is_named_with_its_reason(tmp_path: Path) -> None:
    failed = shard_pb2.HealthReport(state=shard_pb2.SHARD_STATE_FAILED, detail="no room for one block")
    with pytest.raises(ShardFailed, match="shard rank 1 cannot serve: no room for one block"):
        wait_for(tmp_path / "s", loading("kv_pool"), failed)


def test_long_phase_is_told_of_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    now_s = [0.0]
    phases = PhaseLog(RANK_1, clock=lambda: now_s[0])
    with caplog.at_level(logging.INFO, "textmill_launcher"):
        for now_s[0] in (0.0, 4.0, 9.0, 10.0, 15.0, 21.0):
            phases.enter("starting", 0.25)
    assert caplog.messages == [
        "shard rank 1: starting for 10 s now (25 %)",
        "shard rank 1: starting for 21 s now (25 %)",
    ]


class LoadingRouter(BaseHTTPRequestHandler):
    num_refusals = 2

    def do_GET(self) -> None:
        assert self.path == "/health"
        type(self).num_refusals -= 1
        self.send_response(200 if type(self).num_refusals < 0 else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture(params=["http", "https"])
def router_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    LoadingRouter.num_refusals = 2
    with HTTPServer(("127.0.0.1", 0), LoadingRouter) as server:
        if request.param == "https":
            write_pair(tmp_path, "another.example")  # clients know the server by a name that is not its address here
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"{request.param}://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_router_is_ready_at_its_first_200(router_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "textmill_launcher"):
        asyncio.run(asyncio.wait_for(wait_for_router(ChildName("router"), router_url), LIMIT_S))
    assert LoadingRouter.num_refusals == -1
    assert any("waiting for the shards" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("hostname", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("10.0.0.1", "http://10.0.0.1:80"),
    ],
)
def test_url_for_this_machine(hostname: str, url: str) -> None:
    assert local_url(hostname, 80) == url
    assert local_url(hostname, 80, has_tls=True) == url.replace("http", "https")
