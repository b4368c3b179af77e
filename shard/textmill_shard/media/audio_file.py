"""Decodes the bytes of an audio file to one channel at the rate of a model, block by block."""

# F frames of a block, C channels

import io
from collections.abc import Iterator
from dataclasses import dataclass

import soundfile

from textmill_shard.media.errors import MediaError
from textmill_shard.media.mono import Block, Samples, check_form, mix_down
from textmill_shard.media.promised_length import check_promised_length, with_written_length

_BLOCK_FRAMES = 1 << 16
FORMATS = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU")
AV_FORMATS = ("WebM", "MP4", "M4A", "AAC", "AMR")  # which the extra package reads
# Beginnings of the formats that libsndfile reads here. It knows more formats, whose old parsers stay closed.
_MARKS = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM", b".snd", b"ID3")


@dataclass(frozen=True, slots=True)
class _Container:
    """A format of the extra package: the mark at a place of its files, and the parser that may read them."""

    place: int
    mark: bytes
    name: str
    demuxer: str


_CONTAINERS = (
    _Container(0, b"\x1a\x45\xdf\xa3", "WebM", "matroska"),
    _Container(4, b"ftyp", "MP4/M4A", "mov"),
    _Container(0, b"#!AMR", "AMR", "amr"),
)
_AAC = _Container(0, b"", "AAC", "aac")


def decode_audio(data: bytes, *, rate: int, max_seconds: float) -> Samples:
    """Return float32 samples at `rate` Hz, the mean of the channels. Raises MediaError, and MemoryError.

    The length is counted while decoding, whatever the header says. A header that promises more than the file holds is
    refused.
    """
    container = _container_of(data)
    if container is not None:
        return _read_by_av(data, container, rate=rate, max_seconds=max_seconds)
    _check_format(data)
    check_promised_length(data)
    try:
        with soundfile.SoundFile(io.BytesIO(with_written_length(data))) as opened:
            check_form(channels=opened.channels, file_rate=opened.samplerate)
            return mix_down(_blocks(opened), file_rate=opened.samplerate, rate=rate, max_seconds=max_seconds)
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # libsndfile and the codecs below raise exceptions of many kinds
        raise MediaError(f"the audio cannot be decoded ({type(error).__name__}: {error})") from error


def _container_of(data: bytes) -> _Container | None:
    """Return the format of the extra package that a file has, or None."""
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:  # the frame of MPEG audio whose layer is none
        return _AAC
    return next((one for one in _CONTAINERS if data[one.place :].startswith(one.mark)), None)


def _read_by_av(data: bytes, container: _Container, *, rate: int, max_seconds: float) -> Samples:
    try:
        from textmill_shard.media.av_file import read_av  # the package is not installed by default
    except ImportError:
        raise MediaError(
            f"the file is of the format {container.name}, which the server reads with the package av (pip install "
            f"'textmill[av]'); readable are {', '.join(FORMATS)}"
        ) from None
    return read_av(data, demuxer=container.demuxer, rate=rate, max_seconds=max_seconds)


def _check_format(data: bytes) -> None:
    if not data:
        raise MediaError("the file is empty")
    is_mp3_frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    if not data.startswith(_MARKS) and not is_mp3_frame:
        raise MediaError(f"the file is no audio of a known format: {', '.join((*FORMATS, *AV_FORMATS))}")


def _blocks(opened: soundfile.SoundFile) -> Iterator[Block]:
    while True:
        block_FC = opened.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
        yield block_FC
        if len(block_FC) < _BLOCK_FRAMES:
            return
