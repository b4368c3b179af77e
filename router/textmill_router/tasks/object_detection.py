"""object-detection."""

from collections.abc import Sequence

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import ClientShapes
from textmill_router.tasks.file_call import FileBody, FileCall, check_files
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import Box, BoxAnswer, RowResult
from textmill_router.tasks.wishes import BoxWish

TASK = "object-detection"
DEFAULT_THRESHOLD = 0.5
_SIDES = ("xmin", "ymin", "xmax", "ymax")


class DetectionParameters(msgspec.Struct, gc=False):
    """The parameters of object-detection."""

    threshold: float | None = None


class DetectionBody(msgspec.Struct, gc=False):
    """The body of object-detection in JSON."""

    inputs: str | list[str]
    parameters: DetectionParameters | None = None


def detection_call(body: FileBody, model: TaskModel, shapes: ClientShapes) -> FileCall:
    """Apply the rules of object-detection. Raises ValidationFailed and TooManyRows."""
    parameters = body.parameters or DetectionParameters()
    threshold = share_of(parameters.threshold, "threshold", DEFAULT_THRESHOLD)
    check_files(body, model)
    labels = model.facts.labels

    def answer_of(result: RowResult) -> object:
        assert isinstance(result, BoxAnswer)
        return [shown_box(box, labels) for box in result.boxes]

    return FileCall(TASK, body, BoxWish(threshold), answer_of)


def shown_box(box: Box, labels: Sequence[str]) -> dict[str, object]:
    """Return an object as the answer shows it."""
    return {"score": box.score, "label": labels[box.label_id], "box": dict(zip(_SIDES, box.corners, strict=True))}


def share_of(value: float | None, name: str, default: float) -> float:
    """Return a parameter from 0 to 1, or its default. Raises ValidationFailed."""
    if value is None:
        return default
    if not 0.0 <= value <= 1.0:
        raise ValidationFailed(f"`parameters.{name}` must be from 0 to 1, found {value}", field=f"parameters.{name}")
    return value
