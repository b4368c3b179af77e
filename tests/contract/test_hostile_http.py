"""Hostile calls, each with its answer, while the calls of a neighbour stay the same byte for byte."""

import contextlib
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.hostile_calls import HEADER_LIMIT, HOST, JSON, PAYLOAD_LIMIT, ROWS, call
from tests.fakes.running_router import WAIT_TIMEOUT_S, RunningRouter

NEIGHBOUR = {"inputs": "hi", "parameters": {"max_new_tokens": 20}}
NUM_BEFORE = 12  # calls of the neighbour alone, which show its usual time
SLACK_S = 0.1  # of a busy machine
MAX_GROWTH_BYTES = 24 << 20  # by some 200 hostile calls with 40 MB of bodies; the allocator keeps a part


class Neighbour:
    """A client that calls without a pause, streamed and not, and notes each answer that differs from the first one."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._first: dict[str, bytes] = {}
        self.times_s: list[float] = []
        self.differences: list[str] = []

    def __enter__(self) -> "Neighbour":
        self._thread.start()
        self.wait_for_calls(NUM_BEFORE)
        self.usual_s = statistics.median(self.times_s)
        self.num_alone = len(self.times_s)
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join(WAIT_TIMEOUT_S)

    def wait_for_calls(self, count: int) -> None:
        """Wait until so many further calls have ended."""
        wanted = len(self.times_s) + count
        end_s = time.monotonic() + WAIT_TIMEOUT_S
        while len(self.times_s) < wanted and not self.differences and time.monotonic() < end_s:
            self._is_over.wait(0.005)
        assert self.differences == []
        assert len(self.times_s) >= wanted

    def _run(self) -> None:
        headers = {"authorization": "Bearer k"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=WAIT_TIMEOUT_S, trust_env=False) as client:
            while not self._is_over.is_set():
                for route in ("/generate", "/generate_stream"):
                    began_s = time.monotonic()
                    try:
                        answer = client.post(route, json=NEIGHBOUR)
                    except httpx.HTTPError as error:
                        self.differences.append(repr(error))
                        return
                    self.times_s.append(time.monotonic() - began_s)
                    if (answer.status_code, answer.content) != (200, self._first.setdefault(route, answer.content)):
                        self.differences.append(answer.text)


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    limits = {"payload_limit": PAYLOAD_LIMIT, "max_header_bytes": HEADER_LIMIT}
    deadlines = {"header_timeout": 0.5, "body_timeout": 0.5}
    options = FakeShardOptions(step_s=0.002)
    folder = tmp_path_factory.mktemp("hostile")
    with RunningRouter(folder, options, api_key="k", max_total_tokens=2048, **limits, **deadlines) as running:
        yield running


@pytest.fixture(scope="module")
def neighbour(router: RunningRouter) -> Iterator[Neighbour]:
    with Neighbour(router.url) as running:
        yield running


def answer_to(router: RunningRouter, data: bytes) -> tuple[int, dict[str, str]]:
    """Send the bytes, and return status and body of the first answer."""
    with socket.create_connection(("127.0.0.1", router.port), WAIT_TIMEOUT_S) as connection:
        with contextlib.suppress(ConnectionError):  # of a server that has answered and reads no further
            connection.sendall(data)
        received = b""
        while b"\r\n\r\n" not in received:
            part = connection.recv(65_536)
            assert part, received
            received += part
        head, _, body = received.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        while len(body) < int(fields[b"content-length"]):
            body += connection.recv(65_536)
    assert fields[b"content-type"] == b"application/json"
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(("data", "status", "error_type"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_hostile_call_has_its_answer_and_its_neighbour_notices_nothing(
    router: RunningRouter, neighbour: Neighbour, data: bytes, status: int, error_type: str
) -> None:
    num_before = len(neighbour.times_s)
    found, body = answer_to(router, data)
    assert (found, body.get("error_type", "")) == (status, error_type), body
    neighbour.wait_for_calls(3)
    assert statistics.median(neighbour.times_s[num_before:]) < 2 * neighbour.usual_s + SLACK_S


def test_the_neighbour_of_all_these_calls_takes_at_most_twice_its_usual_time(
    router: RunningRouter, neighbour: Neighbour
) -> None:
    for _, data, status, _ in ROWS:
        if status != 408:  # whose clients only wait
            answer_to(router, data)
    disturbed = neighbour.times_s[neighbour.num_alone :]
    assert statistics.median(disturbed) < 2 * neighbour.usual_s + SLACK_S


def test_descriptors_and_memory_are_what_they_were(router: RunningRouter, neighbour: Neighbour) -> None:
    process = psutil.Process()

    def send_all() -> None:
        for _, data, status, _ in ROWS:
            if status != 408:
                answer_to(router, data)

    # The first call with a grammar starts a compiler, whose two pipes stay; a busy server has two compilers.
    send_all()
    num_before, bytes_before = process.num_fds(), process.memory_info().rss
    for _ in range(4):
        send_all()
    router.wait_until(lambda: process.num_fds() <= num_before, f"at most {num_before} descriptors are open")
    assert process.memory_info().rss - bytes_before < MAX_GROWTH_BYTES
    neighbour.wait_for_calls(2)


# Targets that name a protected route in another way than the routes do.
DISGUISES = [
    "//generate",
    "/generate/",
    "/./generate",
    "/x/../generate",
    "/%2e/generate",
    "/%2e%2e/generate",
    "/health/../generate",
    "/health/%2e%2e/generate",
    "/health%2f..%2fgenerate",
    "/health;/generate",
    "/generate;x",
    "/health;x=/../generate",
    "/generate%00",
    "/health%00/generate",
    "/generate%20",
    "/%67enerate",
    "/GENERATE",
    "/generate?x=/health",
    "/generate#/health",
    "/health#/generate",
    "/health?/generate",
    "\\generate",
    "http://x/generate",
    "http://x/health/../generate",
    "/ping//generate",
    "/metrics/../info",
    "/metrics;/info",
    "/%69nfo",
    "//info",
    "/info/",
    "/health/live/../../info",
    "/health/ready%2f%2e%2e%2f%2e%2e%2finfo",
    "/models/%2e%2e/%2e%2e/info",
]


@pytest.mark.parametrize("target", DISGUISES)
@pytest.mark.parametrize("method", [b"GET", b"POST", b"HEAD", b"get", b"OPTIONS"])
def test_no_spelling_of_a_path_passes_the_key(router: RunningRouter, method: bytes, target: str) -> None:
    body = json.dumps(NEIGHBOUR).encode() if method == b"POST" else b""
    line = method + b" " + target.encode() + b" HTTP/1.1\r\n"
    data = call(body, line + HOST + JSON + b"connection: close\r\n")
    with socket.create_connection(("127.0.0.1", router.port), WAIT_TIMEOUT_S) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(65_536):
            received += part
    status = int(received.split()[1])
    content = received.partition(b"\r\n\r\n")[2]
    if status == 200:
        # A fragment or a query changes no path, so these name the open route; an OPTIONS call tells methods alone.
        assert target in ("/health#/generate", "/health?/generate") or method == b"OPTIONS"
        assert content == b""
    else:
        assert status in (400, 401) or (method == b"OPTIONS" and status == 404)
    assert b"generated_text" not in received
    assert b"model_id" not in received
