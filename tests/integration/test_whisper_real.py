"""A real Whisper hears a real voice over HTTP, and its words come out."""

import io
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import soxr
from openai import OpenAI

from tests.fakes.av_sounds import encode_av
from tests.fakes.real_row_shard import RealRowShard
from tests.fakes.real_whisper import speak, write_whisper
from tests.fakes.running_router import RunningRouter

TASK = "automatic-speech-recognition"
SENTENCES = (
    "Good morning everybody. My name is Peter, and I live in a small house near the river.",
    "Seven people are waiting for the train to London.",
    "Yesterday evening we saw a long film about animals in Africa.",
    "The children are playing football in the garden behind the school.",
    "Please close the window, because it is very cold outside.",
    "Next summer my brother wants to travel to Japan with his wife.",
    "The teacher asked a difficult question, but nobody knew the answer.",
    "I would like a cup of coffee with milk and two pieces of sugar.",
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("whisper")
    write_whisper(folder / "model")
    with (
        RunningRouter(
            folder,
            model=folder / "model",
            make_shard=lambda socket, path: RealRowShard(socket, path, TASK),
            task=TASK,
        ) as router,
        httpx.Client(base_url=router.url, timeout=120, trust_env=False) as client,
    ):
        yield client


def recorded(samples: Any, rate: int, kind: str) -> bytes:
    written = io.BytesIO()
    soundfile.write(written, samples, rate, format=kind)
    return written.getvalue()


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3", "OGG"])
def test_the_words_come_out(client: httpx.Client, kind: str) -> None:
    answer = client.post("/", content=recorded(*speak(SENTENCES[3]), kind))
    assert answer.status_code == 200, answer.text
    assert words_of(answer.json()["text"]) == words_of(SENTENCES[3])


def test_words_have_times_in_their_order(client: httpx.Client) -> None:
    samples, rate = speak(SENTENCES[3])
    answer = client.post("/?return_timestamps=word", content=recorded(samples, rate, "WAV")).json()
    assert [words_of(chunk["text"])[0] for chunk in answer["chunks"]] == words_of(SENTENCES[3])
    starts = [chunk["timestamp"][0] for chunk in answer["chunks"]]
    assert starts == sorted(starts)
    assert starts[-1] <= len(samples) / rate


def test_the_route_of_openai_hears_the_words(client: httpx.Client) -> None:
    """OpenAI's client sends WebM, as browsers record. Subtitles and words have times in the audio, in their order."""
    samples, rate = speak(SENTENCES[3])
    opus = soxr.resample(samples.astype(np.float32) / 32768, rate, 48_000)
    file = ("speech.webm", encode_av(opus, "webm", "libopus", rate=48_000))
    openai = OpenAI(base_url=f"{client.base_url}/v1", api_key="-", timeout=120)
    subtitles = openai.audio.transcriptions.create(model="any", file=file, response_format="srt")
    assert words_of(subtitles) == words_of(SENTENCES[3])
    verbose = openai.audio.transcriptions.create(
        model="any",
        file=file,
        language="en",
        prompt="A lesson about football.",
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert (verbose.language, verbose.duration) == ("english", pytest.approx(len(samples) / rate, abs=0.1))
    assert verbose.words is not None
    assert verbose.segments is not None
    assert [words_of(one.word)[0] for one in verbose.words] == words_of(SENTENCES[3])
    assert words_of("".join(one.text for one in verbose.segments)) == words_of(SENTENCES[3])
    for one in verbose.segments:  # openai-whisper's own bounds for words that were heard well
        assert -1.0 < one.avg_logprob < 0.0
        assert one.compression_ratio < 2.4
        assert one.no_speech_prob < 0.6
    times = [time for one in verbose.words for time in (one.start, one.end)]
    assert times == sorted(times)


def test_long_speech_is_heard_to_its_end(client: httpx.Client) -> None:
    """Eight sentences with pauses are longer than the 30 s of a window."""
    parts = []
    for sentence in SENTENCES:
        samples, rate = speak(sentence)
        parts += [samples, np.zeros(rate // 2, np.int16)]
    samples = np.concatenate(parts)
    assert len(samples) > 35 * rate
    answer = client.post("/", content=recorded(samples, rate, "FLAC"))
    assert float(answer.headers["x-compute-audio-length"]) == pytest.approx(len(samples) / rate, abs=0.01)
    heard, said = words_of(answer.json()["text"]), words_of(" ".join(SENTENCES))
    assert SequenceMatcher(None, heard, said).ratio() > 0.9  # "seven" may become 7
    assert heard[-1] == said[-1] == "sugar"
