"""Audio of each format comes out as one channel at the wanted rate, and hostile files end with a sentence."""

import io
import random
import time
import tracemalloc
import wave
from typing import Any

import numpy as np
import pytest
from textmill_shard.media.audio_file import decode_audio
from textmill_shard.media.errors import MediaError

from tests.fakes.hostile_sounds import HOSTILE_SOUNDS, RATE, encode, tone, wav


def decode(data: bytes, *, rate: int = RATE, max_seconds: float = 600.0) -> "np.ndarray[Any, Any]":
    return decode_audio(data, rate=rate, max_seconds=max_seconds)


def tone_bytes() -> bytes:
    """Return the samples of a tone as PCM of 16 bits."""
    return (tone() * 32767).round().astype("<i2").tobytes()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "AU"])
def test_a_format_without_loss_gives_its_samples(kind: str) -> None:
    np.testing.assert_allclose(decode(encode(tone(), kind)), tone(), atol=1e-4)


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_a_format_with_loss_gives_nearly_its_samples(kind: str, subtype: str) -> None:
    found = decode(encode(tone(2.0), kind, subtype=subtype))
    spectrum = np.abs(np.fft.rfft(found))
    assert spectrum.argmax() / len(found) * RATE == pytest.approx(440.0, abs=2.0)
    assert len(found) == pytest.approx(2.0 * RATE, rel=0.05)


def test_channels_become_their_mean() -> None:
    left, right = tone(hertz=440), tone(hertz=880)
    found = decode(encode(np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(found, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_another_rate_is_turned_into_the_models_rate(rate: int) -> None:
    """A tone stays a tone, but for the ends, where the filter has nothing to look at."""
    found = decode(encode(tone(5.0, rate), rate=rate))
    assert len(found) == 5 * RATE
    np.testing.assert_allclose(found[1000:-1000], tone(5.0)[1000:-1000], atol=2e-3)


@pytest.mark.parametrize("name", HOSTILE_SOUNDS)
def test_hostile_audio_ends_with_a_sentence(name: str) -> None:
    data, message = HOSTILE_SOUNDS[name]
    tracemalloc.start()
    began_s = time.process_time()
    with pytest.raises(MediaError, match=message):
        decode(data)
    assert time.process_time() - began_s < 1.0
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 0x7FFF_F000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
def test_a_header_written_into_a_pipe_gives_what_is_there(size: int) -> None:
    tracemalloc.start()
    found = decode(wav(tone_bytes(), size=size))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    np.testing.assert_allclose(found, tone(), atol=1e-4)


@pytest.mark.parametrize("size", [0x7FFF_F000, 0xFFFF_FFFF])
def test_sounds_of_au_from_a_pipe_are_read(size: int) -> None:
    whole = encode(tone(), "AU")
    np.testing.assert_allclose(decode(whole[:8] + size.to_bytes(4, "big") + whole[12:]), tone(), atol=1e-4)


def test_a_wav_that_python_writes_into_a_pipe_is_read() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError("a pipe has no place")

    pipe = Pipe()
    writer = wave.open(pipe, "wb")  # noqa: SIM115  # whose end would repair the header
    writer.setparams((1, 2, RATE, 0, "NONE", "NONE"))
    writer.writeframesraw(tone_bytes())
    np.testing.assert_allclose(decode(pipe.getvalue()), tone(), atol=1e-4)
    writer._file = None  # type: ignore[attr-defined]


def test_the_length_is_counted_at_the_files_own_rate() -> None:
    data = encode(np.zeros(8_000 * 3, np.float32), rate=8_000)
    assert len(decode(data, max_seconds=3.0)) == 3 * RATE
    with pytest.raises(MediaError, match=r"longer than 2\.9 seconds"):
        decode(data, max_seconds=2.9)


def test_broken_files_are_refused_or_read_but_never_anything_else() -> None:
    noise_source = random.Random(7)
    for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU"):
        whole = encode(tone(0.3), kind)
        for _ in range(20):
            broken = bytearray(whole)
            for _ in range(noise_source.randrange(1, 9)):
                broken[noise_source.randrange(len(broken))] = noise_source.randrange(256)
            try:
                found = decode(bytes(broken[: noise_source.randrange(8, len(broken) + 1)]), max_seconds=20.0)
            except MediaError:
                continue
            assert 0 < len(found) <= 20 * RATE
