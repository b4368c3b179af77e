"""Files that are ready for the model, and the work that makes them ready outside of the model's thread."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from textmill_shard.engine.memory_faults import is_out_of_memory
from textmill_shard.media.audio_file import decode_audio
from textmill_shard.media.decoder import DecodingHelpers
from textmill_shard.media.errors import MediaError
from textmill_shard.media.image_file import decode_image
from textmill_shard.media.mono import Samples
from textmill_shard.probing.start_check import CALL_ERRORS
from textmill_shard.tasks.read_faults import failure_of, note_memory
from textmill_shard.tasks.rows import MediaRow, Params, RowFailure


@dataclass(frozen=True, slots=True)
class ReadyRow:
    """One file as the tensors that the model reads, without the dimension of the batch."""

    inputs: Mapping[str, torch.Tensor]
    params: Params = None
    texts: tuple[str, ...] = ()  # about the file
    size: tuple[int, int] = (0, 0)  # height and width of the image in pixels
    samples: Samples | None = None  # of audio, at the model's rate
    seconds: float = 0.0  # of audio
    num_own_tokens: int = 0  # that the tokenizer of the shard has made, where the router does not know them

    @property
    def shape(self) -> tuple[Any, ...]:
        """Rows of equal shapes can run together."""
        return tuple((name, tuple(tensor.shape)) for name, tensor in sorted(self.inputs.items()))


# Makes a file ready, from its bytes and the texts about the file.
Read = Callable[[bytes, tuple[str, ...]], ReadyRow]


class MediaReader:
    """Makes files ready for a model, in helper threads. Any thread may call `read`."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._helpers = DecodingHelpers()

    def read(self, rows: Sequence[MediaRow]) -> list[ReadyRow | RowFailure]:
        """Return each file ready, or why it cannot be read."""
        found = self._helpers.decode(rows, lambda row: note_memory(lambda: self._read(row.file, row.texts)))
        return [
            failure_of(each) if isinstance(each, MediaError) else replace(each, params=row.params, texts=row.texts)
            for each, row in zip(found, rows, strict=True)
        ]

    def close(self) -> None:
        """End the threads."""
        self._helpers.close()


def image_read(
    processor: Any, *, max_pixels: int, check_texts: Callable[[tuple[str, ...]], object] = lambda texts: None
) -> Read:
    """Return a function from the bytes of an image to the model's input.

    The function raises MediaError, and what `check_texts` raises for the texts about the image.
    """

    def read(data: bytes, texts: tuple[str, ...]) -> ReadyRow:
        check_texts(texts)
        image = decode_image(data, max_pixels=max_pixels)
        try:
            inputs = processor(images=image, return_tensors="pt")
        except (*CALL_ERRORS, ArithmeticError) as error:
            if is_out_of_memory(error):
                raise
            # The values of all decoded images have one type and one range, so that the size alone can be wrong.
            raise MediaError(
                f"an image of {image.width} x {image.height} pixels is too narrow or too small for this model; send an "
                "image whose shorter side has more pixels"
            ) from error
        return ReadyRow(_first(inputs), size=(image.height, image.width))

    return read


def audio_read(extractor: Any, *, max_seconds: float, min_samples: int, makes_inputs: bool) -> Read:
    """Return a function from the bytes of audio to samples at the model's rate, and with `makes_inputs` to its input.

    The function raises MediaError.
    """
    rate = int(extractor.sampling_rate)

    def read(data: bytes, texts: tuple[str, ...]) -> ReadyRow:
        samples = decode_audio(data, rate=rate, max_seconds=max_seconds)
        if len(samples) < min_samples:
            raise MediaError(
                f"the audio has {len(samples)} samples at {rate} Hz, the model reads {min_samples} and more"
            )
        inputs: Mapping[str, torch.Tensor] = {}
        if makes_inputs:
            try:
                inputs = _first(extractor(samples, sampling_rate=rate, return_tensors="pt"))
            except (ValueError, AssertionError) as error:
                raise MediaError(f"audio of {len(samples)} samples at {rate} Hz cannot be read: {error}") from error
        return ReadyRow(inputs, samples=samples, seconds=len(samples) / rate)

    return read


def _first(inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value[0] for name, value in inputs.items() if torch.is_tensor(value)}
