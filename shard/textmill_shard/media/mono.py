"""Blocks of decoded audio become one channel at the rate of a model, within the limits of a call."""

# F frames of a block, C channels

import math
from collections.abc import Iterable

import numpy as np
import soxr

from textmill_shard.media.errors import MediaError

MAX_CHANNELS = 8
MIN_RATE, MAX_RATE = 1_000, 192_000  # Hz

Samples = np.ndarray[tuple[int], np.dtype[np.float32]]
Block = np.ndarray[tuple[int, int], np.dtype[np.float32]]  # `[F, C]`


def check_form(*, channels: int, file_rate: int) -> None:
    """Raise MediaError for audio of a number of channels, or of samples a second, that is not read."""
    if not 1 <= channels <= MAX_CHANNELS:
        raise MediaError(f"the audio has {channels} channels, at most {MAX_CHANNELS} are read")
    if not MIN_RATE <= file_rate <= MAX_RATE:
        raise MediaError(f"the audio has {file_rate} samples a second, {MIN_RATE} to {MAX_RATE} are read")


def mix_down(blocks_FC: Iterable[Block], *, file_rate: int, rate: int, max_seconds: float) -> Samples:
    """Return samples at `rate` Hz, the mean of the channels. The blocks are taken one by one. Raises MediaError.

    The length is counted while the blocks come, whatever the header says.
    """
    max_frames = math.floor(max_seconds * file_rate)
    resampler = None if file_rate == rate else soxr.ResampleStream(file_rate, rate, 1, dtype="float32", quality="HQ")
    found: list[Samples] = []
    num_frames = 0
    for block_FC in blocks_FC:
        num_frames += len(block_FC)
        if num_frames > max_frames:
            raise MediaError(f"the audio is longer than {max_seconds:g} seconds (--max-audio-seconds)")
        mono_F = block_FC.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono_F).all():
            raise MediaError("the audio holds samples that are no numbers")
        found.append(mono_F if resampler is None else resampler.resample_chunk(mono_F))
    if resampler is not None:
        found.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    samples = np.concatenate([np.zeros(0, np.float32), *found])
    if not len(samples):
        raise MediaError("the audio holds no sample")
    return samples
