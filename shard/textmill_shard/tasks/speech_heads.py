"""The words of speech, by models that give a character at each step (CTC)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from textmill_shard.media.mono import Samples
from textmill_shard.tasks.heads import NOT_FINITE
from textmill_shard.tasks.media_rows import ReadyRow
from textmill_shard.tasks.rows import (
    Answer,
    RowFailure,
    Timestamps,
    Transcript,
    TranscriptChunk,
    TranscriptParams,
)

DEFAULT_CHUNK_S = 30.0


class CtcHead:
    """The best character at each step. Long audio is cut into chunks that overlap."""

    def __init__(self, model: Any, extractor: Any, tokenizer: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self._extractor = extractor
        self._tokenizer = tokenizer
        self._device = device
        self._dtype = dtype
        self._ratio = int(getattr(model.config, "inputs_to_logits_ratio", 1))  # samples of a step

    def compute(self, rows: Sequence[ReadyRow], on_sign: Callable[[], None]) -> list[Answer | RowFailure]:
        return [self._transcribe(row, on_sign) for row in rows]

    def _transcribe(self, row: ReadyRow, on_sign: Callable[[], None]) -> Answer | RowFailure:
        assert isinstance(row.params, TranscriptParams)
        assert row.samples is not None
        steps: list[int] = []
        for chunk, left, right in self._chunks(row.samples, row.params):
            on_sign()
            inputs = self._extractor(chunk, sampling_rate=self._extractor.sampling_rate, return_tensors="pt")
            logits = self._model(
                **{
                    name: value.to(self._device, self._dtype if value.is_floating_point() else value.dtype)
                    for name, value in inputs.items()
                }
            ).logits[0]
            if not bool(logits.isfinite().all()):
                return NOT_FINITE
            num_steps = round(len(chunk) / self._ratio)
            first = round(left / len(chunk) * num_steps)
            last = num_steps - round(right / len(chunk) * num_steps) if right else None
            steps += logits.argmax(dim=-1)[first:last].tolist()
        return self._decode(steps, row.params.timestamps)

    def _chunks(self, samples: Samples, params: TranscriptParams) -> Iterator[tuple[Samples, int, int]]:
        """Yield samples with how many of them, on the left and on the right, belong to the neighbours."""
        rate, ratio = self._extractor.sampling_rate, self._ratio
        chunk_s = params.chunk_s or DEFAULT_CHUNK_S
        length = max(1, round(chunk_s * rate / ratio)) * ratio
        stride = round((params.stride_s or chunk_s / 6) * rate / ratio) * ratio
        step = max(ratio, length - 2 * stride)
        for start in range(0, len(samples), step):
            is_last = start + length >= len(samples)
            chunk = samples[start : start + length]
            left, right = (stride if start else 0), (0 if is_last else stride)
            if len(chunk) > left:
                yield chunk, left, right
            if is_last:
                return

    def _decode(self, steps: list[int], timestamps: Timestamps) -> Transcript:
        if timestamps not in (Timestamps.WORDS, Timestamps.CHARACTERS):
            return Transcript(self._tokenizer.decode(steps, skip_special_tokens=False))
        found = self._tokenizer.decode(steps, skip_special_tokens=False, output_char_offsets=True)
        offsets, key = found["char_offsets"], "char"
        if timestamps is Timestamps.WORDS:
            offsets = self._tokenizer._get_word_offsets(offsets, self._tokenizer.replace_word_delimiter_char)
            key = "word"
        seconds = self._ratio / self._extractor.sampling_rate
        return Transcript(
            self._tokenizer.decode(steps, skip_special_tokens=False),
            tuple(
                TranscriptChunk(each[key], each["start_offset"] * seconds, each["end_offset"] * seconds)
                for each in offsets
            ),
        )
