"""The depth of each pixel of an image, by the rules of the model's own processor."""

# H height, W width of the image, both in pixels

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.tasks.heads import NOT_FINITE
from textmill_shard.tasks.media_rows import ReadyRow
from textmill_shard.tasks.media_runner import stack
from textmill_shard.tasks.rows import Answer, Depth, FailureCode, RowFailure

MAX_PIXELS = 4 << 20  # of an image, whose answer in JSON has some 20 bytes for each pixel


class DepthHead:
    """Computes one image at a time, because an answer is as large as the image."""

    def __init__(self, model: Any, processor: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self._resize = pick_resize(processor)
        self._device = device
        self._dtype = dtype

    def compute(self, rows: Sequence[ReadyRow], on_sign: Callable[[], None]) -> list[Answer | RowFailure]:
        return [self._measure(row, on_sign) for row in rows]

    def _measure(self, row: ReadyRow, on_sign: Callable[[], None]) -> Answer | RowFailure:
        height, width = row.size
        if height * width > MAX_PIXELS:
            return RowFailure(
                FailureCode.BAD_MEDIA,
                f"the image has {width} x {height} pixels, and depths are answered for at most {MAX_PIXELS}; send a "
                "smaller image",
            )
        on_sign()
        output = self._model(**stack([row], device=self._device, dtype=self._dtype))
        on_sign()
        output.predicted_depth = output.predicted_depth.float()  # depths between pixels have more digits than bfloat16
        depths_HW = self._resize(output, row.size).cpu().numpy()
        if not bool(np.isfinite(depths_HW).all()):
            return NOT_FINITE
        return Depth(depths_HW, _picture(depths_HW))


Resize = Callable[[Any, tuple[int, int]], torch.Tensor]


def pick_resize(processor: Any) -> Resize:
    """Return a function from a model's output of one image, and the image's size, to the depths `[H, W]`.

    Raises UnsupportedModelError for a processor that gives no depths.
    """
    if type(processor).__name__.startswith("ZoeDepth"):
        return _ZoeDepth(is_padded=bool(processor.do_pad)).resize
    if not hasattr(processor, "post_process_depth_estimation"):
        raise UnsupportedModelError(f"the processor {type(processor).__name__} gives no depths")

    def resize(output: Any, size: tuple[int, int]) -> torch.Tensor:
        (found,) = processor.post_process_depth_estimation(output, [size])
        depths: torch.Tensor = found["predicted_depth"]
        return depths.reshape(size)  # the processors drop a side of one pixel

    return resize


class _ZoeDepth:
    """Resizes as ZoeDepth's processor in transformers, whose code for that needs torchvision.

    The depths get the size of the padded image, and lose the padding: on each side int(3 * sqrt(side / 2)) pixels.
    """

    def __init__(self, *, is_padded: bool) -> None:
        self._is_padded = is_padded

    def resize(self, output: Any, size: tuple[int, int]) -> torch.Tensor:
        height, width = size
        above = int(math.sqrt(height / 2) * 3) if self._is_padded else 0
        left = int(math.sqrt(width / 2) * 3) if self._is_padded else 0
        padded_HW = torch.nn.functional.interpolate(
            output.predicted_depth.unsqueeze(1),
            size=(height + 2 * above, width + 2 * left),
            mode="bicubic",
            align_corners=False,
        )[0, 0]
        return padded_HW[above : above + height, left : left + width]


def _picture(depths_HW: "np.ndarray[Any, np.dtype[np.float32]]") -> bytes:
    """Return a PNG of 8 bits of gray: 0 where the depth is least, 255 where the depth is most."""
    least, most = depths_HW.min(), depths_HW.max()
    shades_HW = np.zeros_like(depths_HW) if least == most else (depths_HW - least) / (most - least)
    written = io.BytesIO()
    Image.fromarray((shades_HW * 255).astype(np.uint8)).save(written, "PNG", compress_level=1)
    return written.getvalue()
