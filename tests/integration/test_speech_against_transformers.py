"""A tiny VITS behind the launcher: the files that clients get have the samples of transformers' own model."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from tests.fakes.processes import launched
from tests.fakes.tiny_vits import RATE, make_vits, spoken

TEXT = "good morning everybody"
STEP = 1 / 32768  # what a sample of 16 bits loses at most
ROUNDING = 1e-4  # of other numbers of threads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vits")
    make_vits(folder, num_speakers=2)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    arguments = ["--model-id", str(folder), "--dtype", "float32", "--device", "cpu", "--num-threads", "1"]
    with launched([*arguments, "--max-audio-seconds", "30"], tmp_path_factory.mktemp("server")) as started:
        server = started.wait_ready()
        assert "-o speech.flac" in server.log_text
        with httpx.Client(base_url=server.base_url, timeout=120, trust_env=False) as client:
            yield client


def opened(answer: httpx.Response) -> "tuple[np.ndarray[Any, Any], int, str]":
    assert answer.status_code == 200, answer.text
    with soundfile.SoundFile(io.BytesIO(answer.content)) as sound:
        return sound.read(dtype="float32"), sound.samplerate, sound.format


def speak(client: httpx.Client, text: str, accept: str = "audio/flac", **parameters: Any) -> httpx.Response:
    return client.post("/", json={"inputs": text, "parameters": parameters}, headers={"accept": accept})


@pytest.mark.parametrize("accept", ["audio/flac", "audio/wav"])
def test_samples_are_those_of_transformers_with_the_seed(client: httpx.Client, folder: Path, accept: str) -> None:
    asked = {"seed": 7, "speaker_id": 1, "speaking_rate": 0.5, "noise_scale": 0.5}
    found, rate, _ = opened(speak(client, TEXT, accept, **asked))
    expected = spoken(folder, TEXT, seed=7, speaker=1, rate=0.5, noise_scale=0.5).numpy()
    assert (rate, len(found)) == (RATE, len(expected))
    assert np.abs(found - expected).max() <= STEP + ROUNDING


def test_formats_with_loss_are_the_speech_too(client: httpx.Client, folder: Path) -> None:
    expected = spoken(folder, TEXT, seed=7, speaker=0).numpy()
    for accept, kind in (("audio/ogg", "OGG"), ("audio/mpeg", "MP3")):
        found, rate, found_kind = opened(speak(client, TEXT, accept, seed=7))
        assert (found_kind, rate) == (kind, RATE)
        assert len(found) == pytest.approx(len(expected), abs=0.15 * RATE)


def test_the_route_of_openai_speaks_too(client: httpx.Client, folder: Path) -> None:
    body = {"input": TEXT, "model": "any", "voice": "1", "speed": 2, "seed": 9, "response_format": "wav"}
    answer = client.post("/v1/audio/speech", json=body)
    expected = spoken(folder, TEXT, seed=9, speaker=1, rate=2.0).numpy()
    assert np.abs(opened(answer)[0] - expected).max() <= STEP + ROUNDING
    assert float(answer.headers["x-compute-audio-length"]) == pytest.approx(len(expected) / RATE, abs=0.001)
    plain = client.post("/v1/audio/speech", json={**body, "response_format": "pcm"}).content
    assert len(plain) / 2 / 24_000 == pytest.approx(len(expected) / RATE, abs=0.01)
    assert opened(client.post("/v1/audio/speech", json={**body, "response_format": "opus"}))[1] == 24_000


def test_calls_beside_each_other_keep_their_noise(client: httpx.Client, folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: speak(client, TEXT, seed=seed % 4), range(24)))
    alone = [opened(speak(client, TEXT, seed=seed))[0] for seed in range(4)]
    for number, answer in enumerate(answers):
        assert np.array_equal(opened(answer)[0], alone[number % 4])


@pytest.mark.parametrize(
    ("text", "parameters", "words"),
    [
        ("日本語", {}, "no character that the model can speak"),
        (TEXT * 180, {"speaking_rate": 0.25}, "longer than 30 seconds (--max-audio-seconds)"),
    ],
)
def test_texts_that_cannot_be_spoken_are_422(
    client: httpx.Client, text: str, parameters: dict[str, Any], words: str
) -> None:
    answer = speak(client, text, **parameters)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert words in answer.json()["error"]
