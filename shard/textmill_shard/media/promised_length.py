"""What the header of a file of samples promises: libsndfile does not tell when the file holds less.

A program that writes into a pipe cannot know the length, and leaves a mark in its place.
"""

from dataclasses import dataclass
from typing import Literal

from textmill_shard.media.errors import MediaError

# The marks: ffmpeg (all bits, or none), Python's wave (0), SoX and espeak-ng (0x7ffff000), arecord (0x80000000).
UNKNOWN_LENGTHS = frozenset({0, 0x7FFF_F000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF})
_SAMPLES = (b"data", b"SSND")
_LONG_SIZES = b"ds64"  # of RF64: 64-bit sizes of the form and of the samples


@dataclass(frozen=True, slots=True)
class _Promise:
    """The length that a header gives, None for an unknown one, and the place where the samples begin."""

    num_bytes: int | None
    start: int


def check_promised_length(data: bytes) -> None:
    """Raise MediaError where WAV, AIFF or AU promise more bytes of samples than the file holds.

    A file of another format promises nothing here.
    """
    promise = _promise_of(data)
    if promise is None or promise.num_bytes is None:
        return
    held = max(0, len(data) - promise.start)
    if promise.num_bytes > held:
        raise MediaError(
            f"the header promises {promise.num_bytes} bytes of samples, and the file holds {held}: it is cut off, or "
            "its header is wrong"
        )


def with_written_length(data: bytes) -> bytes:
    """Return a WAV whose header says 0 with the length of the samples that follow; other files as they are.

    libsndfile reads the other marks, and takes 0 for an empty file. The size of the form tells whether the bytes behind
    the header are further chunks of a file without samples.
    """
    promise = _promise_of(data) if data[:4] in (b"RIFF", b"RIFX") else None
    if promise is None or promise.num_bytes is not None or promise.start >= len(data):
        return data
    order = _order(data)
    is_zero = data[promise.start - 4 : promise.start] == bytes(4)
    form_size = int.from_bytes(data[4:8], order)
    if not is_zero or (form_size not in UNKNOWN_LENGTHS and 8 + form_size > promise.start):
        return data
    length = (len(data) - promise.start).to_bytes(4, order)
    return data[: promise.start - 4] + length + data[promise.start :]


def _order(data: bytes) -> Literal["big", "little"]:
    return "big" if data[:4] in (b"RIFX", b"FORM") else "little"


def _promise_of(data: bytes) -> _Promise | None:
    mark = data[:4]
    if mark == b".snd":
        promised, start = int.from_bytes(data[8:12], "big"), int.from_bytes(data[4:8], "big")
        return _Promise(None if promised in UNKNOWN_LENGTHS else promised, start)
    if mark not in (b"RIFF", b"RF64", b"RIFX", b"FORM"):
        return None
    long_size: int | None = None
    place = 12  # behind the mark, the size of the form and its kind
    while place + 8 <= len(data):
        kind, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], _order(data))
        place += 8
        if kind in _SAMPLES:
            return _Promise(long_size if size in UNKNOWN_LENGTHS else size, place)
        if kind == _LONG_SIZES:
            long_size = int.from_bytes(data[place + 8 : place + 16], "little")
        place += size + size % 2
    return None
