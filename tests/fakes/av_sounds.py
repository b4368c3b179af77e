"""Files of audio in the containers that PyAV reads, made by PyAV's own encoders, and hostile ones."""

import io
import struct
from typing import Any

import av
import numpy as np

from tests.fakes.hostile_sounds import noise, tone

# Container, coding and rate of each kind of file.
KINDS: dict[str, tuple[str, str, int]] = {
    "webm": ("webm", "libopus", 48_000),
    "m4a": ("ipod", "aac", 44_100),
    "mp4": ("mp4", "aac", 16_000),
    "alac": ("ipod", "alac", 16_000),
    "3gp": ("3gp", "aac", 22_050),
    "mov": ("mov", "pcm_s16le", 16_000),
    "aac": ("adts", "aac", 48_000),
    "amr": ("amr", "libopencore_amrnb", 8_000),
}


def encode_av(samples: Any, container: str, codec: str, *, rate: int) -> bytes:
    """Return a file of samples, `[F]` or `[F, C]`, in a container."""
    planes_CF = np.ascontiguousarray(np.atleast_2d(np.asarray(samples, np.float32).T))
    layout = {1: "mono", 2: "stereo"}[len(planes_CF)]
    written = io.BytesIO()
    with av.open(written, "w", format=container) as opened:
        stream = opened.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(planes_CF, format="fltp", layout=layout)
        frame.sample_rate = rate
        converter = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for converted in (*converter.resample(frame), *converter.resample(None)):
            opened.mux(stream.encode(converted))
        opened.mux(stream.encode(None))
    return written.getvalue()


def av_tone(kind: str, seconds: float = 2.0) -> bytes:
    container, codec, rate = KINDS[kind]
    return encode_av(tone(seconds, rate), container, codec, rate=rate)


def pictures_alone(container: str = "mp4") -> bytes:
    """Return a video without audio."""
    written = io.BytesIO()
    with av.open(written, "w", format=container) as opened:
        stream = opened.add_stream("mpeg4", rate=5, width=16, height=16, pix_fmt="yuv420p")
        for _ in range(5):
            opened.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        opened.mux(stream.encode(None))
    return written.getvalue()


def _with_many_samples(file: bytes) -> bytes:
    """Return an MP4 whose table says that it holds two thousand million samples."""
    place = file.index(b"stsz") + 8  # after the mark, version and flags: size of all samples, then their number
    return file[:place] + struct.pack(">II", 1, 2_000_000_000) + file[place + 8 :]


def _with_a_rate(file: bytes, rate: int) -> bytes:
    """Return a MOV of PCM whose header says another rate."""
    place = file.index(b"sowt") + 28
    return file[:place] + struct.pack(">HH", rate % 2**16, 0) + file[place + 4 :]


def _with_channels(file: bytes, channels: int) -> bytes:
    """Return a MOV of PCM whose header says another number of channels."""
    place = file.index(b"sowt") + 20
    return file[:place] + struct.pack(">H", channels) + file[place + 2 :]


def hostile_av_sounds() -> dict[str, tuple[bytes, str]]:
    """Return files by what is wrong with them, each with a part of the sentence that refuses the file."""
    m4a, webm = av_tone("m4a"), av_tone("webm")
    silence = np.zeros(8_000 * 700, np.float32)
    return {
        "a WebM of zeros": (b"\x1a\x45\xdf\xa3" + bytes(5_000), "decoded"),
        "a WebM of noise": (b"\x1a\x45\xdf\xa3" + noise(200_000), "decoded"),
        "an MP4 of noise": (b"\0\0\0\x20ftypM4A " + noise(200_000), "decoded"),
        "an AMR of noise": (b"#!AMR\n" + noise(200_000), "decoded|no sample|longer"),
        "an AAC of noise": (b"\xff\xf1" + noise(200_000), "decoded|no sample|changes"),
        "an MP4 without its table": (m4a[: len(m4a) // 2], "decoded"),
        "a WebM without a stream": (webm[: webm.index(b"A_OPUS") - 8], "decoded|no audio"),
        "a video without audio": (pictures_alone(), "holds no audio"),
        "a coding that stays closed": (encode_av(tone(1.0, 48_000), "mp4", "ac3", rate=48_000), "coded as ac3"),
        "two thousand million samples": (_with_many_samples(m4a), "decoded|no sample"),
        "rate 1": (_with_a_rate(av_tone("mov"), 1), "samples a second|decoded"),
        "99 channels": (_with_channels(av_tone("mov"), 99), "99 channels, at most 8|decoded"),
        "samples that are no numbers": (
            encode_av(np.full(16_000, np.nan, np.float32), "mov", "pcm_f32le", rate=16_000),
            "no numbers",
        ),
        "an ALAC of much silence": (encode_av(silence, "ipod", "alac", rate=8_000), "longer than 600 seconds"),
    }
