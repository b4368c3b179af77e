"""`deploy/envoy/envoy.yaml` in a real Envoy, in front of launchers of a tiny model: `make test-proxies`."""

import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.fleet import Fleet, running_fleet
from tests.deploy.manifests import DEPLOY
from tests.deploy.tool_process import running_tool
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.processes import free_port, wait_until
from tests.fakes.running_router import RunningRouter

pytestmark = pytest.mark.proxies

LIMIT_S = 60
NUM_CLIENTS = 6
NUM_TOKENS = 60
PARAMETERS = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "ignore_eos": True}
BODY = {"inputs": "The weather", "parameters": PARAMETERS}
LONG_TOKENS = 2000
COMMENT_INTERVAL_S = 15
SILENCE_S = 2 * COMMENT_INTERVAL_S + 4


def shipped(ports: list[int], listen: int, admin: int, stream_idle_timeout: str | None = None) -> dict[str, Any]:
    """Return the shipped configuration with the addresses of this test, and the idle timeout where one is given."""
    text: dict[str, Any] = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text())
    text["admin"]["address"]["socket_address"]["port_value"] = admin
    [listener] = text["static_resources"]["listeners"]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": listen}
    [cluster] = text["static_resources"]["clusters"]
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports
    ]
    if stream_idle_timeout is not None:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        assert "stream_idle_timeout" in manager
        manager["stream_idle_timeout"] = stream_idle_timeout
    return text


class RunningEnvoy:
    """The proxy, and what its admin page says of the servers."""

    def __init__(self, port: int, admin_port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._admin_url = f"http://127.0.0.1:{admin_port}"

    def is_used(self, port: int) -> bool:
        """Whether Envoy sends calls to the server at this port."""
        lines = httpx.get(f"{self._admin_url}/clusters", timeout=LIMIT_S, trust_env=False).text.splitlines()
        flags = [line for line in lines if f"127.0.0.1:{port}::health_flags" in line]
        return len(flags) == 1 and flags[0].endswith("::healthy")


@contextmanager
def running_envoy(folder: Path, ports: list[int], stream_idle_timeout: str | None = None) -> Iterator[RunningEnvoy]:
    listen, admin = free_port(), free_port()
    file = folder / f"envoy-{listen}.yaml"
    file.write_text(yaml.safe_dump(shipped(ports, listen, admin, stream_idle_timeout)))
    command = ["envoy", "--config-path", file, "--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warning"]
    with running_tool(command, folder / f"envoy-{listen}.log", f"http://127.0.0.1:{admin}/ready"):
        envoy = RunningEnvoy(listen, admin)
        for port in ports:
            wait_until(lambda: envoy.is_used(port), LIMIT_S, "Envoy uses the server")  # noqa: B023
        yield envoy
    assert "Deprecated" not in (folder / f"envoy-{listen}.log").read_text()


@pytest.fixture(scope="module")
def silent_streams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    """Lines of a stream that waits in the queue for two comments and more, by the idle timeout of its Envoy.

    The streams run in threads beside the other tests, and the test that asks for them comes last.
    """
    folder = tmp_path_factory.mktemp("silent")
    options = FakeShardOptions(num_slots=1, step_s=0.05)
    lines: dict[str, list[str]] = {"3s": [], f"{COMMENT_INTERVAL_S + 2}s": []}
    with RunningRouter(folder, options) as router:
        long = {**PARAMETERS, "max_new_tokens": round(SILENCE_S / options.step_s)}
        with router.send("/generate_stream", {"inputs": "a", "parameters": long}):
            router.wait_until_counts(running=1, waiting=0)

            def listen(idle_timeout: str) -> None:
                with (
                    running_envoy(folder, [router.port], idle_timeout) as envoy,
                    httpx.stream("POST", f"{envoy.url}/generate_stream", json=BODY, timeout=LIMIT_S) as stream,
                ):
                    lines[idle_timeout] += [f"status {stream.status_code}", *stream.iter_lines()]

            threads = [threading.Thread(target=listen, args=(idle_timeout,)) for idle_timeout in lines]
            for thread in threads:
                thread.start()
            yield lines
            for thread in threads:
                thread.join(LIMIT_S)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, silent_streams: object) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet"), [(), ()], "--shutdown-delay", "3") as fleet:
        yield fleet


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory, fleet: Fleet) -> Iterator[RunningEnvoy]:
    with running_envoy(tmp_path_factory.mktemp("envoy"), fleet.ports) as envoy:
        yield envoy


class Load:
    """Clients that call without a pause, half of them with streams; each call has an id of its own."""

    def __init__(self, url: str, expected: str, body: dict[str, Any]) -> None:
        self._url, self._expected, self._body = url, expected, body
        self._is_over = threading.Event()
        self.right_ids: list[str] = []
        self.failures: dict[str, str] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Call until the block is left."""
        threads = [threading.Thread(target=self._call, args=(number,), daemon=True) for number in range(NUM_CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join(LIMIT_S)

    def _call(self, number: int) -> None:
        kind = self._stream if number % 2 else self._whole
        num_calls = 0
        with httpx.Client(base_url=self._url, timeout=LIMIT_S, trust_env=False) as client:
            while not self._is_over.is_set():
                num_calls += 1
                name = f"client-{id(self)}-{number}-{num_calls}"
                try:
                    text = kind(client, name)
                except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
                    self.failures[name] = repr(error)
                    continue
                if text == self._expected:
                    self.right_ids.append(name)
                else:
                    self.failures[name] = f"another text: {text!r}"

    def _whole(self, client: httpx.Client, name: str) -> str:
        answer = client.post("/generate", json=self._body, headers={"x-request-id": name})
        answer.raise_for_status()
        return str(answer.json()["generated_text"])

    def _stream(self, client: httpx.Client, name: str) -> str:
        headers = {"x-request-id": name}
        with client.stream("POST", "/generate_stream", json=self._body, headers=headers) as stream:
            stream.raise_for_status()
            events = [line for line in stream.iter_lines() if line.startswith("data:")]
        return str(json.loads(events[-1].removeprefix("data:"))["generated_text"])


def load_of(envoy: RunningEnvoy, num_tokens: int) -> Load:
    body = {**BODY, "parameters": {**PARAMETERS, "max_new_tokens": num_tokens}}
    answer = httpx.post(f"{envoy.url}/generate", json=body, trust_env=False, timeout=LIMIT_S)
    return Load(envoy.url, answer.json()["generated_text"], body)


def test_each_event_comes_when_it_is_made(envoy: RunningEnvoy) -> None:
    body = {**BODY, "parameters": {**PARAMETERS, "max_new_tokens": 400}}
    arrivals_s = []
    with httpx.stream("POST", f"{envoy.url}/generate_stream", json=body, timeout=LIMIT_S, trust_env=False) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        for chunk in stream.iter_raw():
            arrivals_s += [time.monotonic()] * chunk.count(b"data:")
    assert len(arrivals_s) == 400
    assert len(set(arrivals_s)) > 200, "most events came alone"


def test_an_answer_is_what_it_is_without_envoy(envoy: RunningEnvoy, fleet: Fleet) -> None:
    for method, path, content, status in [
        ("GET", "/info", None, 200),
        ("POST", "/generate", b'{"inputs": 3}', 422),
        ("POST", "/generate", b'{"inputs": "' + b"x" * 1_900_000 + b'"}', 422),
        ("POST", "/generate", b'{"inputs": "' + b"x" * 3_000_000 + b'"}', 413),
    ]:
        shown, wanted = (
            httpx.request(
                method,
                f"{url}{path}",
                content=content,
                headers={"content-type": "application/json", "x-request-id": "of-the-client"},
                timeout=LIMIT_S,
                trust_env=False,
            )
            for url in (envoy.url, fleet.url(fleet.ports[0]))
        )
        assert (shown.status_code, shown.content) == (wanted.status_code, wanted.content)
        assert shown.status_code == status
        assert shown.headers.get_list("x-request-id") == ["of-the-client"]
        assert shown.headers.get("server") == wanted.headers.get("server")


@pytest.mark.slow  # some 40 s: two servers start, and a server starts when it is replaced
def test_no_call_fails_and_none_is_made_twice_while_servers_are_replaced(envoy: RunningEnvoy, fleet: Fleet) -> None:
    load = load_of(envoy, NUM_TOKENS)
    with load.running():
        for port in fleet.ports:
            num_before = len(load.right_ids)
            wait_until(lambda: len(load.right_ids) > num_before + 20, LIMIT_S, "calls go on")  # noqa: B023
            fleet.terminate(port)
            fleet.start(port)
            fleet.wait_ready()
            wait_until(lambda: envoy.is_used(port), LIMIT_S, "Envoy uses the new server")  # noqa: B023
    assert load.failures == {}
    assert len(load.right_ids) > 100
    answered = Counter(name for name in fleet.answered_ids() if name.startswith(f"client-{id(load)}-"))
    assert answered == Counter(load.right_ids)


@pytest.mark.slow  # some 20 s: a server starts
def test_a_call_of_a_killed_server_is_not_generated_again(envoy: RunningEnvoy, fleet: Fleet) -> None:
    """The lost server's calls fail, because it may have generated; calls after them go to the other server."""
    load = load_of(envoy, LONG_TOKENS)
    lost, kept = fleet.ports
    with load.running():
        wait_until(lambda: fleet.metric(lost, "textmill_requests_running") > 1, LIMIT_S, "the server computes")
        num_before = len(load.right_ids)
        fleet.kill(lost)
        wait_until(lambda: len(load.right_ids) > num_before + NUM_CLIENTS, LIMIT_S, "calls go on")
        wait_until(lambda: not envoy.is_used(lost), LIMIT_S, "Envoy knows that the server is away")
    assert 1 <= len(load.failures) <= NUM_CLIENTS, load.failures
    # The log of the killed server may lack its last lines, and the log of the other one lacks none.
    by_kept = [name for name in fleet.answered_ids(kept) if name.startswith(f"client-{id(load)}-")]
    assert set(by_kept).isdisjoint(load.failures), "a call that failed was generated by the other server"
    assert len(by_kept) == len(set(by_kept)) > NUM_CLIENTS
    assert max(Counter(name for name in fleet.answered_ids() if name.startswith(f"client-{id(load)}-")).values()) == 1
    fleet.start(lost)
    fleet.wait_ready()
    wait_until(lambda: envoy.is_used(lost), LIMIT_S, "Envoy uses the new server")
    assert fleet.ports == [lost, kept]


class _Bad(BaseHTTPRequestHandler):
    """A server that seems ready, and fails each call in the way of the test."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200)

    def do_POST(self) -> None:
        assert isinstance(self.server, BadServer)
        self.rfile.read(int(self.headers["content-length"]))
        self.server.num_calls += 1
        if self.server.way == "cut":
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset
        else:
            self._answer(int(self.server.way))

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class BadServer(ThreadingHTTPServer):
    """`way` is the status of each call, or `cut` for a connection that is reset when the call has been read."""

    daemon_threads = True

    def __init__(self, way: str) -> None:
        super().__init__(("127.0.0.1", 0), _Bad)
        self.way = way
        self.num_calls = 0

    @contextmanager
    def running(self) -> Iterator["BadServer"]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


@pytest.mark.parametrize(("way", "seen"), [("503", 200), ("500", 500), ("502", 502), ("429", 429), ("cut", 503)])
def test_only_a_call_that_no_server_has_begun_is_sent_again(tmp_path: Path, way: str, seen: int) -> None:
    num_calls, statuses = 24, Counter[int]()
    with (
        RunningRouter(tmp_path, FakeShardOptions()) as good,
        BadServer(way).running() as bad,
        running_envoy(tmp_path, [good.port, bad.server_port]) as envoy,
        httpx.Client(base_url=envoy.url, timeout=LIMIT_S, trust_env=False) as client,
    ):
        for _ in range(num_calls):
            statuses[client.post("/generate", json=BODY).status_code] += 1
        page = httpx.get(f"{good.url}/metrics", timeout=LIMIT_S, trust_env=False).text
    num_generated = int(re.findall(r"^tgi_request_count (\d+)", page, re.MULTILINE)[0])
    assert 0 < bad.num_calls < num_calls, "Envoy gives calls to both servers, and chooses by chance"
    assert statuses == Counter({200: num_generated, seen: bad.num_calls} if seen != 200 else {200: num_calls})
    assert num_generated == (num_calls if seen == 200 else num_calls - bad.num_calls)


def test_a_refusal_for_load_goes_to_the_client(tmp_path: Path) -> None:
    with (
        RunningRouter(tmp_path, FakeShardOptions(step_s=0.02), max_concurrent_requests=1) as router,
        running_envoy(tmp_path, [router.port]) as envoy,
        router.send("/generate", BODY),
    ):
        router.wait_until_counts(running=1, waiting=0)
        answer = httpx.post(f"{envoy.url}/generate", json=BODY, timeout=LIMIT_S, trust_env=False)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.slow  # some 35 s: comments come every 15 s
def test_comments_keep_a_silent_stream_open(silent_streams: dict[str, list[str]]) -> None:
    """An Envoy that waits two seconds longer than the comments take keeps the stream; an impatient one ends it."""
    kept, cut = silent_streams[f"{COMMENT_INTERVAL_S + 2}s"], silent_streams["3s"]
    wait_until(
        lambda: any('"generated_text":"' in line for line in kept), LIMIT_S, "the stream ends", lambda: str(kept)
    )
    assert kept[0] == "status 200"
    assert sum(line.startswith(":") for line in kept) >= 2
    assert cut[:1] == ["status 504"]
