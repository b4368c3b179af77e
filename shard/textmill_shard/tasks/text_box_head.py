"""The objects of an image that texts describe: zero-shot-object-detection."""

# P places of an image that may hold an object, n texts

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from textmill_shard.tasks.heads import NOT_FINITE
from textmill_shard.tasks.label_texts import KeptTexts, LabelTexts, find_text_tower
from textmill_shard.tasks.media_rows import ReadyRow
from textmill_shard.tasks.media_runner import stack
from textmill_shard.tasks.rows import Answer, Boxes, BoxParams, FailureCode, RowFailure

MAX_OBJECTS = 50_000  # of one image
_TOO_MANY = RowFailure(
    FailureCode.BAD_MEDIA,
    f"more than {MAX_OBJECTS} objects have scores above the threshold; send a higher `parameters.threshold`",
)


class TextBoxHead:
    """Computes one image at a time. The objects of all texts come together, the best first.

    With `reads_together` the model scores each place for each text by itself (OWL-ViT), so that one forward pass serves
    all texts. Else the texts of a forward pass influence each other (Grounding DINO), and each text is read alone.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        texts: LabelTexts,
        *,
        reads_together: bool,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._model = model
        self._processor = processor
        self._texts = texts
        self._reads_together = reads_together
        self._device = device
        self._dtype = dtype
        tower = find_text_tower(model) if reads_together else None
        self._kept = None if tower is None else KeptTexts(tower)

    def compute(self, rows: Sequence[ReadyRow], on_sign: Callable[[], None]) -> list[Answer | RowFailure]:
        return [self._detect(row, on_sign) for row in rows]

    def _detect(self, row: ReadyRow, on_sign: Callable[[], None]) -> Answer | RowFailure:
        assert isinstance(row.params, BoxParams)
        image = stack([row], device=self._device, dtype=self._dtype)
        lists = [row.texts] if self._reads_together else [(text,) for text in row.texts]
        found: list[Any] = []  # of each text
        for texts in lists:
            on_sign()
            output = self._forward(texts, image)
            if not bool(output.pred_boxes.isfinite().all() and not output.logits.isnan().any()):
                return NOT_FINITE
            for each in _of_each_text(output, len(texts)):
                found.append(self._objects(each, row))
            if sum(len(objects["scores"]) for objects in found) > MAX_OBJECTS:
                return _TOO_MANY
        return _together(found, row.size)

    def _forward(self, texts: tuple[str, ...], image: Mapping[str, torch.Tensor]) -> Any:
        if self._kept is not None:
            self._kept.expect(texts)
        tokens = {name: tensor.to(self._device) for name, tensor in self._texts(texts).items()}
        return self._model(**tokens, **image)

    def _objects(self, output: Any, row: ReadyRow) -> Any:
        assert isinstance(row.params, BoxParams)
        (objects,) = self._processor.post_process_object_detection(
            output, threshold=row.params.threshold, target_sizes=torch.tensor([row.size])
        )
        return objects


def _of_each_text(output: Any, num_texts: int) -> list[Any]:
    """Return what a forward pass says of each text: `logits` `[1, P, 1]` where the texts were read together."""
    if num_texts == 1:
        return [output]
    return [
        SimpleNamespace(logits=output.logits[:, :, index : index + 1], pred_boxes=output.pred_boxes)
        for index in range(num_texts)
    ]


def _together(found: Sequence[Any], size: tuple[int, int]) -> Boxes:
    """Return the objects of all texts, the best first, and of equal scores in the order of the texts."""
    labels = np.repeat(np.arange(len(found)), [len(objects["scores"]) for objects in found])
    scores = torch.cat([objects["scores"] for objects in found]).float().cpu().numpy()
    corners = torch.cat([objects["boxes"] for objects in found]).float().cpu().numpy().astype(np.int64)
    height, width = size
    order = np.argsort(-scores, kind="stable")
    # Whole pixels inside of the image.
    corners = corners.clip(0, np.array([width, height, width, height]))
    return Boxes(label_ids=labels[order], scores=scores[order], corners=corners[order])
