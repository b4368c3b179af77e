"""Decodes the bytes of an audio file to one channel at the rate of a model, block by block."""

# F frames of a block, C channels

import io
import math

import numpy as np
import soundfile
import soxr

from textmill_shard.media.errors import MediaError

MAX_CHANNELS = 8
MIN_RATE, MAX_RATE = 1_000, 192_000  # Hz
_BLOCK_FRAMES = 1 << 16
FORMATS = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU")
# Beginnings of the formats that libsndfile reads here. It knows more formats, whose old parsers stay closed.
_MARKS = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM", b".snd", b"ID3")
# Containers that only the extra package reads.
_BY_AV = ((0, b"\x1a\x45\xdf\xa3", "WebM"), (4, b"ftyp", "MP4/M4A"), (0, b"#!AMR", "AMR"))

Samples = np.ndarray[tuple[int], np.dtype[np.float32]]


def decode_audio(data: bytes, *, rate: int, max_seconds: float) -> Samples:
    """Return float32 samples at `rate` Hz, the mean of the channels. Raises MediaError.

    The length is counted while decoding, whatever the header says.
    """
    _check_format(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as opened:
            samples = _read(opened, rate=rate, max_seconds=max_seconds)
    except MediaError:
        raise
    except Exception as error:  # libsndfile and the codecs below raise exceptions of many kinds
        raise MediaError(f"the audio cannot be decoded ({type(error).__name__}: {error})") from error
    if not len(samples):
        raise MediaError("the audio holds no sample")
    return samples


def _check_format(data: bytes) -> None:
    if not data:
        raise MediaError("the file is empty")
    for place, mark, name in _BY_AV:
        if data[place : place + len(mark)] == mark:
            raise MediaError(f"the file is of the format {name}, readable are {', '.join(FORMATS)}")
    is_mp3_frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    if not data.startswith(_MARKS) and not is_mp3_frame:
        raise MediaError(f"the file is no audio of a known format: {', '.join(FORMATS)}")


def _read(opened: soundfile.SoundFile, *, rate: int, max_seconds: float) -> Samples:
    if not 1 <= opened.channels <= MAX_CHANNELS:
        raise MediaError(f"the audio has {opened.channels} channels, at most {MAX_CHANNELS} are read")
    if not MIN_RATE <= opened.samplerate <= MAX_RATE:
        raise MediaError(f"the audio has {opened.samplerate} samples a second, {MIN_RATE} to {MAX_RATE} are read")
    max_frames = math.floor(max_seconds * opened.samplerate)
    resampler = (
        None
        if opened.samplerate == rate
        else soxr.ResampleStream(opened.samplerate, rate, 1, dtype="float32", quality="HQ")
    )
    blocks: list[Samples] = []
    num_frames = 0
    while True:
        block_FC = opened.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
        num_frames += len(block_FC)
        if num_frames > max_frames:
            raise MediaError(f"the audio is longer than {max_seconds:g} seconds (--max-audio-seconds)")
        mono_F = block_FC.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono_F).all():
            raise MediaError("the audio holds samples that are no numbers")
        is_last = len(block_FC) < _BLOCK_FRAMES
        blocks.append(mono_F if resampler is None else resampler.resample_chunk(mono_F, last=is_last))
        if is_last:
            return np.concatenate(blocks)
