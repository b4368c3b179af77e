"""image-segmentation."""

from base64 import b64encode

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import ClientShapes
from textmill_router.tasks.file_call import FileBody, FileCall, check_files
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.object_detection import share_of
from textmill_router.tasks.row_results import RowResult, Segment, SegmentAnswer
from textmill_router.tasks.wishes import SegmentWish

TASK = "image-segmentation"


class SegmentationParameters(msgspec.Struct, gc=False):
    """The parameters of image-segmentation."""

    threshold: float | None = None
    mask_threshold: float | None = None
    overlap_mask_area_threshold: float | None = None
    subtask: str | None = None


class SegmentationBody(msgspec.Struct, gc=False):
    """The body of image-segmentation in JSON."""

    inputs: str | list[str]
    parameters: SegmentationParameters | None = None


def segmentation_call(body: FileBody, model: TaskModel, shapes: ClientShapes) -> FileCall:
    """Apply the rules of image-segmentation. Raises ValidationFailed and TooManyRows."""
    parameters = body.parameters or SegmentationParameters()
    wish = SegmentWish(
        threshold=share_of(parameters.threshold, "threshold", 0.9),
        mask_threshold=share_of(parameters.mask_threshold, "mask_threshold", 0.5),
        overlap_threshold=share_of(parameters.overlap_mask_area_threshold, "overlap_mask_area_threshold", 0.5),
        subtask=_subtask(parameters.subtask, model),
    )
    check_files(body, model)
    labels = model.facts.labels

    def shown(segment: Segment) -> dict[str, object]:
        found: dict[str, object] = {} if segment.score is None else {"score": segment.score}
        return {**found, "label": labels[segment.label_id], "mask": b64encode(segment.mask).decode()}

    def answer_of(result: RowResult) -> object:
        assert isinstance(result, SegmentAnswer)
        return [shown(segment) for segment in result.segments]

    return FileCall(TASK, body, wish, answer_of)


def _subtask(name: str | None, model: TaskModel) -> str:
    if name is None:
        return ""
    if name not in model.facts.subtasks:
        known = ", ".join(model.facts.subtasks)
        raise ValidationFailed(
            f"`parameters.subtask` must be one of those of this model ({known}), found {name[:32]!r}",
            field="parameters.subtask",
        )
    return name
