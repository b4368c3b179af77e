"""A shard of rows that is killed while calls run: the launcher starts the shard again, and no call notices."""

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.fakes.processes import LaunchedServer, launched
from tests.fakes.word_tokenizer import vocabulary, write_word_tokenizer

NUM_CALLS = 200


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LaunchedServer]:
    folder = write_word_tokenizer(tmp_path / "model")
    config = AutoConfig.for_model(
        "bert",
        vocab_size=len(dict.fromkeys(vocabulary())),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=48,
    )
    AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).save_pretrained(folder)
    arguments = ["--model-id", str(folder), "--dtype", "float32", "--device", "cpu", "--num-threads", "1"]
    with launched(arguments, tmp_path) as started:
        yield started.wait_ready()


def test_calls_outlive_a_shard_that_is_killed(server: LaunchedServer) -> None:
    url = server.base_url
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client, ThreadPoolExecutor(16) as pool:

        def call(number: int) -> tuple[int, str]:
            answer = client.post("/", json={"inputs": "the happy dog " * (1 + number % 10)})
            return answer.status_code, answer.text

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
        metrics = client.get("/metrics").text
        restarts = re.findall(r'^textmill_shard_restarts\w*\{reason="\w+"\} (\S+)', metrics, re.MULTILINE)
        assert sum(map(float, restarts)) == 1
        assert client.get("/health").status_code == 200


def test_the_service_ends_within_its_grace_and_answers_what_runs(server: LaunchedServer) -> None:
    with httpx.Client(base_url=server.base_url, timeout=30, trust_env=False) as client:
        assert client.post("/", json={"inputs": "the happy dog"}).status_code == 200
    assert server.stop() == 0
