"""Speech by VITS: transformers' forward pass, with noise that a seed decides."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers.utils import is_uroman_available

from textmill_shard.media.errors import MediaError
from textmill_shard.media.sound_file import encode_sound
from textmill_shard.tasks.heads import NOT_FINITE
from textmill_shard.tasks.media_rows import ReadyRow
from textmill_shard.tasks.rows import Answer, FailureCode, RowFailure, Sound, SoundParams
from textmill_shard.tasks.text_parts import divide_text

MAX_PART_CHARACTERS = 300  # of a forward pass
MAX_FILE_BYTES = 48 << 20  # of an answer, so that its message stays below 64 MiB


class _TooLong(Exception):
    """The speech has more seconds than the shard makes."""


class VitsHead:
    """Speaks a text, one row at a time. The noise is that of `torch.manual_seed` before transformers' forward pass.

    `max_seconds` is the longest speech. The lengths of the sounds tell how long the speech gets, before it is made.
    """

    def __init__(self, model: Any, *, max_seconds: float, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._rate = int(model.config.sampling_rate)  # Hz
        self._max_seconds = max_seconds
        self._defaults = SoundParams(
            speaking_rate=float(model.speaking_rate),
            noise_scale=float(model.noise_scale),
            noise_scale_duration=float(model.noise_scale_duration),
        )
        self._samples_of_frame = int(np.prod(model.config.upsample_rates))
        self._length_scale = 1.0  # of the pass that runs
        self._samples_left = 0.0
        model.duration_predictor.register_forward_hook(self._check_length)

    @property
    def num_speakers(self) -> int:
        return max(1, int(self._model.config.num_speakers))

    def compute(self, rows: Sequence[ReadyRow], on_sign: Callable[[], None]) -> list[Answer | RowFailure]:
        return [self._speak(row, on_sign) for row in rows]

    def _speak(self, row: ReadyRow, on_sign: Callable[[], None]) -> Answer | RowFailure:
        params = row.params
        assert isinstance(params, SoundParams)
        waves = []
        self._samples_left = self._max_seconds * self._rate
        try:
            with _noise(params.seed, self._device):
                for ids in row.inputs.values():
                    on_sign()
                    waves.append(self._wave(ids, params))
                    self._samples_left -= len(waves[-1])
        except _TooLong:
            return RowFailure(
                FailureCode.BAD_MEDIA,
                f"the speech would be longer than {self._max_seconds:g} seconds (--max-audio-seconds); send a shorter "
                "text",
            )
        samples = torch.cat(waves)
        if not bool(samples.isfinite().all()):
            return NOT_FINITE
        file = encode_sound(samples.float().cpu().numpy(), rate=self._rate, name=params.sound_format.value)
        if len(file) > MAX_FILE_BYTES:
            return RowFailure(
                FailureCode.BAD_MEDIA,
                f"the file would have {len(file)} bytes, and at most {MAX_FILE_BYTES} are sent; ask for mp3",
            )
        return Sound(file, len(samples) / self._rate)

    def _wave(self, ids: torch.Tensor, params: SoundParams) -> torch.Tensor:
        """Return the samples of a part, `[F]`."""
        own = self._defaults
        self._model.noise_scale = own.noise_scale if params.noise_scale is None else params.noise_scale
        duration = params.noise_scale_duration
        self._model.noise_scale_duration = own.noise_scale_duration if duration is None else duration
        asked = own.speaking_rate if params.speaking_rate is None else params.speaking_rate
        assert asked is not None
        rate = asked * params.speed
        self._length_scale = 1.0 / rate
        speaker = {"speaker_id": params.speaker} if self._model.config.num_speakers > 1 else {}
        wave: torch.Tensor = self._model(input_ids=ids[None].to(self._device), speaking_rate=rate, **speaker).waveform[
            0
        ]
        return wave

    def _check_length(self, module: Any, given: Any, log_duration: torch.Tensor) -> None:
        """Raise _TooLong before the sounds are made. Lengths that are no numbers make a sample that is none."""
        frames = torch.ceil(torch.exp(log_duration) * self._length_scale).sum()
        if float(frames) * self._samples_of_frame > self._samples_left:
            raise _TooLong


def vits_read(tokenizer: Any) -> Callable[[str], ReadyRow]:
    """Return a function from a text to the ids of its parts, each `[n]`. The function raises MediaError."""

    def read(text: str) -> ReadyRow:
        if tokenizer.is_uroman and not text.isascii() and not is_uroman_available():
            raise MediaError(
                "the model reads Latin letters alone, and the text has others: send it in Latin letters, or install "
                "the package uroman on the server"
            )
        ids = {}
        for number, part in enumerate(divide_text(text, MAX_PART_CHARACTERS)):
            prepared, _ = tokenizer.prepare_for_tokenization(part)
            if prepared:
                ids[f"part {number}"] = tokenizer(part, return_tensors="pt")["input_ids"][0]
        if not ids:
            raise MediaError("the text has no character that the model can speak")
        return ReadyRow(ids, num_own_tokens=sum(map(len, ids.values())))

    return read


@contextmanager
def _noise(seed: int, device: torch.device) -> Iterator[None]:
    """Let torch draw from this seed, and put the generators back at the end."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
