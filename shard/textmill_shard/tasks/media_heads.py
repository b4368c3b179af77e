"""Labels of images and audio, and the objects of images."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from textmill_shard.tasks.heads import NOT_FINITE
from textmill_shard.tasks.media_rows import ReadyRow
from textmill_shard.tasks.media_runner import stack
from textmill_shard.tasks.rows import Answer, Boxes, BoxParams, RowFailure


class MediaLabelHead:
    """The raw scores of the labels."""

    def __init__(self, model: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self._device = device
        self._dtype = dtype

    def compute(self, rows: Sequence[ReadyRow], on_sign: Callable[[], None]) -> list[Answer | RowFailure]:
        logits = self._model(**stack(rows, device=self._device, dtype=self._dtype)).logits.float().cpu().numpy()
        return [scores if bool(np.isfinite(scores).all()) else NOT_FINITE for scores in logits]


class BoxHead:
    """The objects whose scores are above a row's threshold, by the rules of the model's own processor."""

    def __init__(self, model: Any, processor: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self._processor = processor
        self._device = device
        self._dtype = dtype

    def compute(self, rows: Sequence[ReadyRow], on_sign: Callable[[], None]) -> list[Answer | RowFailure]:
        output = self._model(**stack(rows, device=self._device, dtype=self._dtype))
        if not bool(output.logits.isfinite().all() and output.pred_boxes.isfinite().all()):
            is_finite = [
                bool(logits.isfinite().all() and boxes.isfinite().all())
                for logits, boxes in zip(output.logits, output.pred_boxes, strict=True)
            ]
        else:
            is_finite = [True] * len(rows)
        sizes = torch.tensor([row.size for row in rows])
        found = self._processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
        return [
            self._answer(each, row) if good else NOT_FINITE
            for each, row, good in zip(found, rows, is_finite, strict=True)
        ]

    def _answer(self, found: Any, row: ReadyRow) -> Boxes:
        assert isinstance(row.params, BoxParams)
        kept = found["scores"] > row.params.threshold
        height, width = row.size
        # Whole pixels inside of the image.
        corners = found["boxes"][kept].float().cpu().numpy().astype(np.int64)
        corners = corners.clip(0, np.array([width, height, width, height]))
        return Boxes(
            label_ids=found["labels"][kept].cpu().numpy().astype(np.int64),
            scores=found["scores"][kept].float().cpu().numpy(),
            corners=corners,
        )
