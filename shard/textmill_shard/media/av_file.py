"""Decodes audio in the containers of videos and phones with PyAV, whose package is not installed by default."""

import io
import itertools
from collections.abc import Iterator
from typing import Any

import av
import numpy as np

from textmill_shard.media.errors import MediaError
from textmill_shard.media.mono import Block, Samples, check_form, mix_down

# The codings of audio that such files have; others stay closed, because old decoders are many.
CODECS = frozenset({"aac", "opus", "vorbis", "mp3", "mp3float", "flac", "alac", "amrnb", "amrwb"})
_PCM = "pcm_"
_BLOCK_FRAMES = 1 << 16
# Of the demuxer: bytes and microseconds that are looked at before decoding begins, and the most streams of a file.
_OPTIONS = {"probesize": "1000000", "analyzeduration": "1000000", "max_streams": "16"}


def read_av(data: bytes, *, demuxer: str, rate: int, max_seconds: float) -> Samples:
    """Return samples at `rate` Hz of the first stream of audio. Raises MediaError, and MemoryError.

    `demuxer` names the one parser that may read the file, because others open further files and addresses.
    """
    try:
        with av.open(io.BytesIO(data), "r", format=demuxer, container_options=_OPTIONS) as container:
            return _read(container, rate=rate, max_seconds=max_seconds)
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # each demuxer and decoder fails at damaged files with errors of its own
        raise MediaError(f"the audio cannot be decoded ({type(error).__name__}: {error})") from error


def _read(container: av.container.InputContainer, *, rate: int, max_seconds: float) -> Samples:
    if not container.streams.audio:
        raise MediaError("the file holds no audio")
    stream = container.streams.audio[0]
    context = stream.codec_context
    name = context.name
    if name not in CODECS and not name.startswith(_PCM):
        raise MediaError(f"the audio is coded as {name[:32]}, readable are {', '.join(sorted(CODECS))} and PCM")
    context.thread_count = 1
    frames = container.decode(stream)
    first = next(frames, None)
    if first is None:
        raise MediaError("the audio holds no sample")
    file_rate, channels = first.sample_rate, first.layout.nb_channels
    check_form(channels=channels, file_rate=file_rate)
    blocks = _blocks(first, frames, file_rate=file_rate, channels=channels)
    return mix_down(blocks, file_rate=file_rate, rate=rate, max_seconds=max_seconds)


def _blocks(first: av.AudioFrame, others: Iterator[av.AudioFrame], *, file_rate: int, channels: int) -> Iterator[Block]:
    """Yield the frames of the decoder as numbers from -1 to 1, `[F, C]`, many small frames together."""
    converter = av.AudioResampler(format="fltp")
    parts_CF: list[Any] = []  # float32, as the converter gives them
    num_frames = 0
    for frame in itertools.chain((first,), others):
        if (frame.sample_rate, frame.layout.nb_channels) != (file_rate, channels):
            raise MediaError("the audio changes its rate or its channels on the way")
        parts_CF += [converted.to_ndarray() for converted in converter.resample(frame)]
        num_frames += frame.samples
        if num_frames >= _BLOCK_FRAMES:
            yield np.concatenate(parts_CF, axis=1).T
            parts_CF, num_frames = [], 0
    if parts_CF:
        yield np.concatenate(parts_CF, axis=1).T
