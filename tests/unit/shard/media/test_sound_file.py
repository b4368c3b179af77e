"""Each format of speech, written and then read by libsndfile, against the samples."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile
from textmill_shard.media.sound_file import FORMATS, PLAIN_RATE, encode_sound

RATE = 16_000


def tone(seconds: float, rate: int = RATE) -> "np.ndarray[Any, np.dtype[np.float32]]":
    times = np.arange(round(seconds * rate)) / rate
    found: np.ndarray[Any, np.dtype[np.float32]] = (np.sin(2 * np.pi * 440 * times) / 2).astype(np.float32)
    return found


def opened(file: bytes) -> "tuple[np.ndarray[Any, Any], int, str, str]":
    with soundfile.SoundFile(io.BytesIO(file)) as sound:
        return sound.read(dtype="float32"), sound.samplerate, sound.format, sound.subtype


@pytest.mark.parametrize(("name", "kind"), [("flac", ("FLAC", "PCM_16")), ("wav", ("WAV", "PCM_16"))])
def test_formats_without_loss_keep_each_sample(name: str, kind: tuple[str, str]) -> None:
    samples = tone(5.0)
    found, rate, *found_kind = opened(encode_sound(samples, rate=RATE, name=name))
    assert (rate, tuple(found_kind), len(found)) == (RATE, kind, len(samples))
    assert np.abs(found - samples).max() <= 1 / 32768


@pytest.mark.parametrize(
    ("name", "kind", "rate"),
    [
        ("ogg", ("OGG", "VORBIS"), RATE),
        ("mp3", ("MP3", "MPEG_LAYER_III"), RATE),
        ("opus", ("OGG", "OPUS"), PLAIN_RATE),
    ],
)
def test_formats_with_loss_keep_length_and_tone(name: str, kind: tuple[str, str], rate: int) -> None:
    found, found_rate, *found_kind = opened(encode_sound(tone(3.0), rate=RATE, name=name))
    assert (found_rate, tuple(found_kind)) == (rate, kind)
    assert len(found) / found_rate == pytest.approx(3.0, abs=0.1)
    spectrum = np.abs(np.fft.rfft(found[: 2 * found_rate]))
    assert np.argmax(spectrum) / 2 == pytest.approx(440, abs=2)
    assert np.abs(found).max() == pytest.approx(0.5, abs=0.05)


def test_samples_without_a_header_are_little_endian_at_24_khz() -> None:
    file = encode_sound(tone(1.0, PLAIN_RATE), rate=PLAIN_RATE, name="pcm")
    found = np.frombuffer(file, dtype="<i2") / 32768
    assert np.abs(found - tone(1.0, PLAIN_RATE)).max() <= 1 / 32768
    assert len(encode_sound(tone(1.0), rate=RATE, name="pcm")) == 2 * PLAIN_RATE


def test_a_rate_that_mp3_lacks_is_resampled() -> None:
    assert opened(encode_sound(tone(1.0, 20_000), rate=20_000, name="mp3"))[1] == PLAIN_RATE


@pytest.mark.parametrize("name", ["flac", "wav"])
def test_samples_beyond_the_range_are_cut_and_never_turned_over(name: str) -> None:
    samples = np.array([0.0, 1.0, 1.5, -1.0, -1.5, 0.25], np.float32)
    found = opened(encode_sound(samples, rate=RATE, name=name))[0]
    assert np.abs(found - samples.clip(-1, 1)).max() <= 1 / 32768


@pytest.mark.parametrize("name", FORMATS)
def test_a_minute_of_speech_is_written(name: str) -> None:
    """libsndfile's writers of lossy formats fail at long blocks."""
    assert encode_sound(tone(60.0), rate=RATE, name=name)
