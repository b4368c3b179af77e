"""The segments of images, by the rules of the model's own processor, with a mask for each."""

# H height, W width, both in pixels; Q queries or labels of which the processor enlarges a map each

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForImageSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.tasks.heads import NOT_FINITE
from textmill_shard.tasks.media_rows import ReadyRow
from textmill_shard.tasks.media_runner import stack
from textmill_shard.tasks.rows import Answer, FailureCode, RowFailure, SegmentParams, Segments

SUBTASKS = ("panoptic", "instance", "semantic")
# Numbers in the enlarged maps of an image: 1 GiB in fp32. Maps of a larger image are smaller than the image.
MAX_MAP_NUMBERS = 1 << 28
MAX_MASK_BYTES = 48 << 20  # of one image; a message has at most 64 MiB
_CLASSES = (
    AutoModelForUniversalSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForImageSegmentation,
    AutoModelForSemanticSegmentation,
)


def segmentation_class(config: Any) -> Any:
    """Return the class of transformers that builds the model of a config. Raises UnsupportedModelError."""
    found = next((each for each in _CLASSES if type(config) in each._model_mapping), AutoModelForSemanticSegmentation)
    if config.model_type == "oneformer":
        raise UnsupportedModelError("models of type oneformer cannot be served: they read the task as a text")
    return found


class SegmentHead:
    """Computes one image at a time, because its masks are as large as the image."""

    def __init__(self, model: Any, processor: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self._processor = processor
        self._device = device
        self._dtype = dtype
        self.subtasks = tuple(name for name in SUBTASKS if hasattr(processor, f"post_process_{name}_segmentation"))
        if not self.subtasks:
            raise UnsupportedModelError(f"the processor {type(processor).__name__} finds no segments")

    def compute(self, rows: Sequence[ReadyRow], on_sign: Callable[[], None]) -> list[Answer | RowFailure]:
        return [self._segment(row, on_sign) for row in rows]

    def _segment(self, row: ReadyRow, on_sign: Callable[[], None]) -> Answer | RowFailure:
        assert isinstance(row.params, SegmentParams)
        on_sign()
        output = self._model(**stack([row], device=self._device, dtype=self._dtype))
        maps = [value for value in output.values() if torch.is_tensor(value)]
        if not all(bool(value.isfinite().all()) for value in maps):
            return NOT_FINITE
        on_sign()
        subtask = row.params.subtask or self.subtasks[0]
        size = _map_size(row.size, max(value.shape[1] for value in maps))
        process = getattr(self._processor, f"post_process_{subtask}_segmentation")
        scores: list[float] | None = None
        if subtask == "semantic":
            map_HW = process(output, target_sizes=[size])[0].cpu().numpy()
            label_ids = numbers = np.unique(map_HW).tolist()
        else:
            if subtask == "instance":  # whose code in transformers lays the segments on a map of the CPU
                output = type(output)(**{name: value.cpu() for name, value in output.items() if torch.is_tensor(value)})
            answer = process(
                output,
                threshold=row.params.threshold,
                mask_threshold=row.params.mask_threshold,
                overlap_mask_area_threshold=row.params.overlap_threshold,
                target_sizes=[size],
            )[0]
            map_HW = answer["segmentation"].cpu().numpy()
            label_ids = [each["label_id"] for each in answer["segments_info"]]
            numbers = [each["id"] for each in answer["segments_info"]]
            scores = [float(each["score"]) for each in answer["segments_info"]]
        masks: list[bytes] = []
        for number in numbers:
            on_sign()
            masks.append(_mask_file(map_HW == number, row.size))
            if sum(map(len, masks)) > MAX_MASK_BYTES:
                return RowFailure(
                    FailureCode.BAD_MEDIA,
                    f"the masks of an image of {row.size[1]} x {row.size[0]} pixels have more than "
                    f"{MAX_MASK_BYTES} bytes; send a smaller image",
                )
        return Segments(label_ids, scores, masks)


def _map_size(size: tuple[int, int], num_maps: int) -> tuple[int, int]:
    """Return height and width of the maps: the image's, or less where the maps would take too much memory."""
    height, width = size
    share = MAX_MAP_NUMBERS / (height * width * num_maps)
    if share >= 1.0:
        return size
    return max(1, math.floor(height * math.sqrt(share))), max(1, math.floor(width * math.sqrt(share)))


def _mask_file(mask_HW: "np.ndarray[Any, np.dtype[np.bool_]]", size: tuple[int, int]) -> bytes:
    """Return a mask as a PNG that is as large as the image."""
    image = Image.fromarray(mask_HW.astype(np.uint8) * 255)
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.NEAREST)
    written = io.BytesIO()
    image.save(written, "PNG", compress_level=1)
    return written.getvalue()
