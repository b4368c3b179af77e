"""Instances behind a proxy are replaced one after the other under load, and no call fails."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.fakes.processes import STOP_LIMIT_S, LaunchedServer, free_port, launched, wait_until
from tests.fakes.round_robin import RoundRobinProxy
from tests.fakes.tiny_models import make_tiny_llama

NUM_REPLACEMENTS = 3
PARAMETERS = {"max_new_tokens": 40, "do_sample": False, "ignore_eos": True}
BODY = {"inputs": "The weather", "parameters": PARAMETERS}


class Load:
    """Clients that call without a pause, each on a connection that it keeps as long as the server lets it."""

    def __init__(self, url: str, expected: str) -> None:
        self._url = url
        self._expected = expected
        self._is_over = threading.Event()
        self.num_right = 0
        self.failures: list[str] = []

    @contextmanager
    def running(self, num_clients: int) -> Iterator[None]:
        """Call until the block is left."""
        kinds = [self._whole, self._stream]
        threads = [threading.Thread(target=self._call, args=(kinds[i % 2],), daemon=True) for i in range(num_clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join(STOP_LIMIT_S)

    def _call(self, kind: object) -> None:
        assert callable(kind)
        with httpx.Client(base_url=self._url, timeout=STOP_LIMIT_S, trust_env=False) as client:
            while not self._is_over.is_set():
                try:
                    text = kind(client)
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self.failures.append(repr(error))
                    continue
                if text == self._expected:
                    self.num_right += 1
                else:
                    self.failures.append(f"another text: {text!r}")

    def _whole(self, client: httpx.Client) -> str:
        answer = client.post("/generate", json=BODY)
        answer.raise_for_status()
        return str(answer.json()["generated_text"])

    def _stream(self, client: httpx.Client) -> str:
        with client.stream("POST", "/generate_stream", json=BODY) as stream:
            stream.raise_for_status()
            events = [line for line in stream.iter_lines() if line.startswith("data:")]
        return str(json.loads(events[-1].removeprefix("data:"))["generated_text"])


@pytest.mark.faults
@pytest.mark.slow  # some 40 s: starts five servers, each of which imports torch
def test_no_call_fails_while_instances_are_replaced(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", max_position_embeddings=2048)
    arguments = ["--model-id", str(model), "--dtype", "float32", "--kv-cache-bytes", str(8 * 1024 * 1024)]
    arguments += ["--shutdown-delay", "1"]
    with ExitStack() as stack:
        proxy = stack.enter_context(RoundRobinProxy())

        def start() -> tuple[int, LaunchedServer]:
            port = free_port()
            return port, stack.enter_context(launched(arguments, tmp_path, port=port))

        def take_in(port: int, server: LaunchedServer) -> None:
            server.wait_ready()
            proxy.add(port)
            wait_until(lambda: proxy.is_used(port), STOP_LIMIT_S, "the proxy uses the new instance")

        instances = [start() for _ in range(2)]
        for instance in instances:
            take_in(*instance)
        answer = httpx.post(f"{instances[0][1].base_url}/generate", json=BODY, trust_env=False, timeout=STOP_LIMIT_S)
        load = Load(proxy.url, answer.json()["generated_text"])
        with load.running(num_clients=6):
            for _ in range(NUM_REPLACEMENTS):
                fresh = start()
                take_in(*fresh)
                port, server = instances.pop(0)
                num_before = load.num_right
                wait_until(lambda: load.num_right > num_before + 10, STOP_LIMIT_S, "calls go on")  # noqa: B023
                assert server.stop(signal.SIGTERM) == 0
                proxy.remove(port)
                instances.append(fresh)
    assert load.failures == []
    assert load.num_right > 100
    assert len(proxy.num_by_port) == 2 + NUM_REPLACEMENTS, "each instance got connections"
