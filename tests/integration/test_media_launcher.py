"""A model of images is served by the launcher alone: no tokenizer, the limits of its flags, a shard that is killed."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from transformers import AutoModelForImageClassification

from tests.fakes.processes import LaunchedServer, launched
from tests.fakes.tiny_media import make_media_model, picture_file


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LaunchedServer]:
    make_media_model(tmp_path / "model", "vit", AutoModelForImageClassification, num_labels=7)
    arguments = ["--model-id", str(tmp_path / "model"), "--dtype", "float32", "--device", "cpu", "--num-threads", "1"]
    limits = ["--max-image-pixels", "10000", "--media-payload-limit", "100000", "--max-task-rows", "2"]
    with launched([*arguments, *limits], tmp_path) as started:
        yield started.wait_ready()


def test_images_are_served_and_calls_outlive_a_shard_that_is_killed(server: LaunchedServer) -> None:
    file = picture_file(40, 30)
    with httpx.Client(base_url=server.base_url, timeout=120, trust_env=False) as client, ThreadPoolExecutor(8) as pool:
        expected = client.post("/", content=file).json()
        assert len(expected) == 5
        assert "--data-binary @picture.jpg" in server.log_text
        too_many_pixels = client.post("/", content=picture_file(101, 100))
        assert (too_many_pixels.status_code, too_many_pixels.json()["error_type"]) == (422, "validation")
        assert "more than 10000 pixels (--max-image-pixels)" in too_many_pixels.json()["error"]
        assert client.post("/", content=bytes(100_001)).status_code == 413
        assert client.post("/", json={"inputs": ["aGk="] * 3}).json()["error_type"] == "batch size exceeded"
        calls = [pool.submit(client.post, "/", content=file) for _ in range(60)]
        calls[5].result()
        [shard] = server.children("textmill_shard")
        os.kill(shard.pid, signal.SIGKILL)
        for call in calls:
            answer = call.result()
            assert answer.status_code == 200, answer.text
            for found, wanted in zip(answer.json(), expected, strict=True):
                assert found["label"] == wanted["label"]
                assert found["score"] == pytest.approx(wanted["score"], abs=1e-5)
        [again] = server.children("textmill_shard")
        assert again.pid != shard.pid
