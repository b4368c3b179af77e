"""Audio of the containers that PyAV reads comes out as one channel, and hostile files end with a sentence."""

import random
import sys
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from textmill_shard.media.audio_file import decode_audio
from textmill_shard.media.errors import MediaError

from tests.fakes.av_sounds import KINDS, av_tone, encode_av, hostile_av_sounds
from tests.fakes.hostile_sounds import RATE, tone

HOSTILE = hostile_av_sounds()


def decode(data: bytes, *, max_seconds: float = 600.0) -> "np.ndarray[Any, Any]":
    return decode_audio(data, rate=RATE, max_seconds=max_seconds)


@pytest.mark.parametrize("kind", KINDS)
def test_each_container_gives_its_tone(kind: str) -> None:
    found = decode(av_tone(kind))
    assert len(found) / RATE == pytest.approx(2.0, abs=0.15)
    spectrum = np.abs(np.fft.rfft(found))
    assert spectrum.argmax() / len(found) * RATE == pytest.approx(440.0, abs=2.0)
    assert np.abs(found[RATE // 2 : RATE]).max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("kind", ["alac", "mov"])
def test_a_coding_without_loss_gives_its_samples(kind: str) -> None:
    np.testing.assert_allclose(decode(av_tone(kind)), tone(2.0), atol=1e-4)


def test_channels_become_their_mean() -> None:
    both = np.stack([tone(hertz=440), tone(hertz=880)], axis=1)
    found = decode(encode_av(both, "mov", "pcm_f32le", rate=RATE))
    np.testing.assert_allclose(found, both.mean(axis=1), atol=1e-6)


def test_the_length_is_counted_while_decoding() -> None:
    for kind in ("alac", "mov"):
        assert len(decode(av_tone(kind), max_seconds=2.0)) == 2 * RATE
        with pytest.raises(MediaError, match=r"longer than 1\.9 seconds"):
            decode(av_tone(kind), max_seconds=1.9)


def test_silence_that_takes_few_bytes_ends_at_the_limit() -> None:
    file = encode_av(np.zeros(8_000 * 70, np.float32), "webm", "libopus", rate=8_000)
    assert len(file) < 40_000
    with pytest.raises(MediaError, match="longer than 60 seconds"):
        decode(file, max_seconds=60.0)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_audio_ends_with_a_sentence(name: str) -> None:
    data, message = HOSTILE[name]
    tracemalloc.start()
    began_s = time.process_time()
    with pytest.raises(MediaError, match=message):
        decode(data)
    assert time.process_time() - began_s < 1.0
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_refused_or_read_but_never_anything_else(kind: str) -> None:
    source = random.Random(7)
    whole = av_tone(kind, 0.3)
    for _ in range(40):
        broken = bytearray(whole)
        for _ in range(source.randrange(1, 9)):
            broken[source.randrange(12, len(broken))] = source.randrange(256)
        began_s = time.process_time()
        try:
            found = decode(bytes(broken[: source.randrange(16, len(broken) + 1)]), max_seconds=20.0)
        except MediaError:
            continue
        finally:
            assert time.process_time() - began_s < 1.0
        assert 0 < len(found) <= 20 * RATE


@pytest.mark.parametrize("data", [b"#EXTM3U\nhttp://localhost/a.ts\n", b"ffconcat version 1.0\nfile /etc/passwd\n"])
def test_files_that_name_other_files_are_no_audio(data: bytes) -> None:
    with pytest.raises(MediaError, match="no audio of a known format"):
        decode(data)


@pytest.mark.parametrize(("kind", "name"), [("webm", "WebM"), ("m4a", "MP4/M4A"), ("amr", "AMR"), ("aac", "AAC")])
def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, kind: str, name: str) -> None:
    monkeypatch.setitem(sys.modules, "textmill_shard.media.av_file", None)
    with pytest.raises(MediaError) as error:
        decode(av_tone(kind))
    assert f"the format {name}" in str(error.value)
    assert "pip install 'textmill[av]'" in str(error.value)
