"""What the connection refuses itself looks as the path's dialect wants errors, and has the id of the request."""

import json
import re
import socket
from pathlib import Path

import pytest

from tests.fakes.running_router import WAIT_TIMEOUT_S, RunningRouter

HEAD = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
# Each row has the lines behind the request line and its first host, and the status.
FAULTS: list[tuple[bytes, int]] = [
    (b"host: y\r\ncontent-length: 2\r\n\r\n{}", 400),
    (b"transfer-encoding: gzip\r\n\r\n", 501),
    (b"x: y\r\n" * 300 + b"\r\n", 431),
    (b"content-length: 5x\r\n\r\n", 400),
]


def refused(router: RunningRouter, data: bytes) -> tuple[int, dict[str, str], dict[str, object]]:
    """Send bytes, and return status, headers and body of what comes until the connection ends."""
    with socket.create_connection(("127.0.0.1", router.port), WAIT_TIMEOUT_S) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, json.loads(body)


@pytest.mark.parametrize(("lines", "status"), FAULTS, ids=["two hosts", "coding", "many fields", "no length"])
@pytest.mark.parametrize(
    "path",
    [
        b"/v1/chat/completions",
        b"/v1/nothing?x=1",
        b"/chat/completions",
        b"http://x/v1/completions",
        b"/%76%31/completions",
    ],
)
def test_fault_of_a_header_is_openais_object_on_its_paths(
    router: RunningRouter, path: bytes, lines: bytes, status: int
) -> None:
    found, headers, body = refused(router, HEAD % path + lines)
    assert found == status
    error = body["error"]
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])


@pytest.mark.parametrize(("lines", "status"), FAULTS, ids=["two hosts", "coding", "many fields", "no length"])
def test_fault_of_a_header_is_tgis_elsewhere(router: RunningRouter, lines: bytes, status: int) -> None:
    found, headers, body = refused(router, HEAD % b"/generate" + lines)
    assert found == status
    assert set(body) == {"error", "error_type"}
    assert isinstance(body["error"], str)
    assert headers["x-request-id"]


def test_refusal_gives_back_the_id_that_the_client_gave(router: RunningRouter) -> None:
    _, headers, _ = refused(router, HEAD % b"/generate" + b"x-request-id: mine-7\r\nhost: y\r\n\r\n")
    assert headers["x-request-id"] == "mine-7"


def test_body_that_does_not_come_is_refused_in_the_dialect(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, body_timeout=0.2) as router:
        data = HEAD % b"/v1/completions" + b"x-request-id: slow\r\ncontent-length: 9\r\n\r\n{"
        status, headers, body = refused(router, data)
    assert (status, headers["x-request-id"]) == (408, "slow")
    assert isinstance(body["error"], dict)
