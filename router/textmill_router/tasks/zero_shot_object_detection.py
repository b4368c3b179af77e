"""zero-shot-object-detection: the objects of an image that the labels of the call describe."""

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import ClientShapes
from textmill_router.tasks.candidate_labels import LABELS_PATH, check_lengths, checked_labels
from textmill_router.tasks.file_call import FileBody, FileCall, ImageInputs, check_files, with_texts
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.object_detection import share_of, shown_box
from textmill_router.tasks.row_results import BoxAnswer, RowResult
from textmill_router.tasks.wishes import BoxWish

TASK = "zero-shot-object-detection"
DEFAULT_THRESHOLD = 0.1


class DescribedObjectsParameters(msgspec.Struct, gc=False):
    """The parameters of zero-shot-object-detection. The labels may be one string with commas."""

    candidate_labels: list[str] | str | None = None
    threshold: float | None = None
    top_k: int | None = None


class DescribedObjectsBody(msgspec.Struct, gc=False):
    """The body of zero-shot-object-detection in JSON."""

    inputs: str | ImageInputs | list[str | ImageInputs]
    parameters: DescribedObjectsParameters | None = None


def described_objects_call(body: FileBody, model: TaskModel, shapes: ClientShapes) -> FileCall:
    """Apply the rules of zero-shot-object-detection. Raises ValidationFailed and TooManyRows."""
    parameters = body.parameters or DescribedObjectsParameters()
    labels = checked_labels(parameters.candidate_labels)
    check_lengths(labels)
    threshold = share_of(parameters.threshold, "threshold", DEFAULT_THRESHOLD)
    top_k = parameters.top_k
    if top_k is not None and top_k < 1:
        raise ValidationFailed(f"`parameters.top_k` must be at least 1, found {top_k}", field="parameters.top_k")
    check_files(body, model)

    def answer_of(result: RowResult) -> object:
        assert isinstance(result, BoxAnswer)
        return [shown_box(box, labels) for box in result.boxes[:top_k]]

    return FileCall(TASK, with_texts(body, tuple(labels), LABELS_PATH), BoxWish(threshold), answer_of)
