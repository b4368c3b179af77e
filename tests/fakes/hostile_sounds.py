"""Files of audio written by hand, and hostile ones with a part of the sentence that refuses each of them."""

import io
import random
import struct
from typing import Any

import numpy as np
import soundfile

RATE = 16_000


def tone(seconds: float = 0.5, rate: int = RATE, hertz: float = 440.0) -> "np.ndarray[Any, Any]":
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode(samples: Any, kind: str = "WAV", *, rate: int = RATE, **options: Any) -> bytes:
    written = io.BytesIO()
    soundfile.write(written, samples, rate, format=kind, **options)
    return written.getvalue()


def wav(body: bytes, *, channels: int = 1, rate: int = RATE, kind: int = 1, bits: int = 16, size: int = -1) -> bytes:
    """Write a WAV by hand, whose header may lie about the size."""
    size = len(body) if size < 0 else size
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", kind, channels, rate, (rate * block) % 2**32, block % 2**16, bits)
    head = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", (len(head) + size) % 2**32) + head + body


def noise(num_bytes: int) -> bytes:
    return random.Random(1).randbytes(num_bytes)


# What is refused where at most 600 seconds are read.
HOSTILE_SOUNDS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty"),
    "a text": (b"hello, this is no sound", "no audio of a known format"),
    "a header without samples": (wav(b""), "no sample"),
    "a header that promises 4 GB": (wav(bytes(3200), size=2**32 - 100), "promises 4294967196 bytes .* holds 3200"),
    "a header that promises 100 bytes more": (wav(bytes(3200), size=3300), "promises 3300 bytes .* holds 3200"),
    "a WAV that is cut": (encode(tone())[:5000], "promises 16000 bytes"),
    "0 channels": (wav(bytes(100), channels=0), "decoded|channels"),
    "99 channels": (wav(bytes(99 * 2 * 10), channels=99), "99 channels, at most 8"),
    "rate 0": (wav(bytes(100), rate=0), "decoded|samples a second"),
    "rate 4 GHz": (wav(bytes(100), rate=2**32 - 1), "decoded|samples a second"),
    "samples that are no numbers": (
        wav(struct.pack("<4f", 0.0, float("nan"), 0.0, 0.0), kind=3, bits=32),
        "no numbers",
    ),
    "endless samples": (wav(struct.pack("<2f", 0.0, float("inf")), kind=3, bits=32), "no numbers"),
    "a RIFF that is no WAV": (b"RIFF\x10\0\0\0AVI LIST", "decoded"),
    "a FLAC that is cut": (encode(tone(), "FLAC")[:60], "decoded|no sample"),
    "an OGG of noise": (b"OggS" + noise(50_000), "decoded"),
    "an MP3 of noise": (b"\xff\xfb\x90\x00" + noise(200_000), "decoded|no sample"),
    "WebM": (b"\x1a\x45\xdf\xa3" + bytes(50), "decoded"),
    "MP4": (b"\0\0\0\x20ftypM4A " + bytes(50), "decoded"),
    "AMR": (b"#!AMR\n" + bytes(50), "decoded|no sample"),
    "too long": (encode(np.zeros(RATE * 700, np.float32), subtype="PCM_U8"), "longer than 600 seconds"),
    "a FLAC of much silence": (encode(np.zeros(8_000 * 3_000, np.float32), "FLAC", rate=8_000), "longer than 600"),
}
