"""A shard of rows that is killed, or ends at a planted text, while calls run: the launcher starts the shard again."""

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.fakes.deadly_classifier import DEADLY_TEXT, make_deadly_classifier
from tests.fakes.processes import LaunchedServer, launched

NUM_CALLS = 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchedServer]:
    tmp_path = tmp_path_factory.mktemp("server")
    folder = make_deadly_classifier(tmp_path / "model")
    arguments = ["--model-id", str(folder), "--dtype", "float32", "--device", "cpu", "--num-threads", "1"]
    arguments += ["--trust-remote-code", "--batch-window-ms", "100"]
    # With a window of no length every restart is the first, so that no back-off makes the tests slow.
    arguments += ["--max-restarts", "1", "--restart-window", "0"]
    with launched(arguments, tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules")) as started:
        yield started.wait_ready()


def num_restarts(client: httpx.Client) -> float:
    found = re.findall(r'^textmill_shard_restarts\w*\{reason="\w+"\} (\S+)', client.get("/metrics").text, re.MULTILINE)
    return sum(map(float, found))


def test_calls_outlive_a_shard_that_is_killed(server: LaunchedServer) -> None:
    url = server.base_url
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client, ThreadPoolExecutor(16) as pool:

        def call(number: int) -> tuple[int, str]:
            answer = client.post("/", json={"inputs": "the happy dog " * (1 + number % 10)})
            return answer.status_code, answer.text

        num_before = num_restarts(client)
        alone = [call(number)[1] for number in range(10)]
        calls = [pool.submit(call, number) for number in range(NUM_CALLS)]
        calls[20].result()
        [shard] = server.children("textmill_shard")
        os.kill(shard.pid, signal.SIGKILL)
        found = [one.result() for one in calls]
        assert {status for status, _ in found} == {200}
        for number, (_, text) in enumerate(found):
            ours, first = httpx.Response(200, text=text).json(), httpx.Response(200, text=alone[number % 10]).json()
            assert [entry["label"] for entry in ours[0]] == [entry["label"] for entry in first[0]]
            assert ours[0][0]["score"] == pytest.approx(first[0][0]["score"], abs=1e-5)
        [again] = server.children("textmill_shard")
        assert again.pid != shard.pid
        assert num_restarts(client) - num_before == 1
        assert client.get("/health").status_code == 200


# The shard imports torch again after each death, which takes 10 s and more. Quicker tests of the same rule are in
# `contract/test_task_queue.py`.
@pytest.mark.slow
@pytest.mark.faults
def test_a_text_that_ends_the_shard_fails_alone(server: LaunchedServer) -> None:
    """All texts are in one batch, because the first of them waits for others."""
    with httpx.Client(base_url=server.base_url, timeout=120, trust_env=False) as client, ThreadPoolExecutor(4) as pool:
        num_before = num_restarts(client)
        texts = ["the happy dog", "my cat", ["a sunny day", DEADLY_TEXT], "i live in london"]
        answers = [answer.result() for answer in [pool.submit(client.post, "/", json={"inputs": one}) for one in texts]]
        assert [answer.status_code for answer in answers] == [200, 200, 424, 200]
        assert answers[2].json()["error_type"] == "generation"
        assert "the second time with this row alone" in answers[2].json()["error"]
        for text, answer in zip(texts, answers, strict=True):
            if answer.status_code == 200:
                again = client.post("/", json={"inputs": text}).json()[0]
                assert [entry["label"] for entry in answer.json()[0]] == [entry["label"] for entry in again]
                assert answer.json()[0][0]["score"] == pytest.approx(again[0]["score"], abs=1e-5)
        assert num_restarts(client) - num_before == 2


def test_the_service_ends_within_its_grace_and_answers_what_runs(server: LaunchedServer) -> None:
    with httpx.Client(base_url=server.base_url, timeout=30, trust_env=False) as client:
        assert client.post("/", json={"inputs": "the happy dog"}).status_code == 200
    assert server.stop() == 0
