"""Writes samples as the bytes of an audio file, block by block."""

# F frames

import io

import numpy as np
import soundfile
import soxr

from textmill_shard.media.mono import Samples

FORMATS = ("flac", "wav", "ogg", "mp3", "opus", "pcm")
PLAIN_RATE = 24_000  # Hz, of Opus and of samples without a header, which do not tell their rate
_BLOCK_FRAMES = 1 << 16
# Container and coding, as soundfile calls them.
_KINDS = {
    "flac": ("FLAC", "PCM_16"),
    "wav": ("WAV", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
    "pcm": ("RAW", "PCM_16"),
}
_MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


def encode_sound(samples_F: Samples, *, rate: int, name: str) -> bytes:
    """Return a file of the format `name`, one of FORMATS, at `rate` Hz or at the rate that the format needs.

    Samples are from -1 to 1, and those beyond are cut. PCM has 16 bits, little-endian.
    """
    wanted = PLAIN_RATE if name in ("opus", "pcm") or (name == "mp3" and rate not in _MP3_RATES) else rate
    if wanted != rate:
        samples_F = soxr.resample(samples_F, rate, wanted, quality="HQ")
    container, coding = _KINDS[name]
    written = io.BytesIO()
    with soundfile.SoundFile(
        written,
        "w",
        samplerate=wanted,
        channels=1,
        format=container,
        subtype=coding,
        endian="LITTLE" if name == "pcm" else None,
    ) as opened:
        for start in range(0, len(samples_F), _BLOCK_FRAMES):
            opened.write(np.ascontiguousarray(samples_F[start : start + _BLOCK_FRAMES]))
    return written.getvalue()
