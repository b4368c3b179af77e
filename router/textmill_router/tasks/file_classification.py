"""image-classification and audio-classification."""

import msgspec

from textmill_router.tasks.call import ClientShapes
from textmill_router.tasks.file_call import FileBody, FileCall, check_files, check_top_k
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import RowResult
from textmill_router.tasks.scores import Function, apply, best_first, default_function, logits_of
from textmill_router.tasks.wishes import LabelWish

IMAGE_TASK, AUDIO_TASK = "image-classification", "audio-classification"


class FileLabelParameters(msgspec.Struct, gc=False):
    """The parameters of image-classification and audio-classification."""

    top_k: int | None = None
    function_to_apply: Function | None = None


class FileLabelBody(msgspec.Struct, gc=False):
    """The body of image-classification and audio-classification in JSON."""

    inputs: str | list[str]
    parameters: FileLabelParameters | None = None


def image_labels_call(body: FileBody, model: TaskModel, shapes: ClientShapes) -> FileCall:
    """Apply the rules of image-classification. Raises ValidationFailed and TooManyRows."""
    return _call(IMAGE_TASK, body, model, default_function(model.facts))


def audio_labels_call(body: FileBody, model: TaskModel, shapes: ClientShapes) -> FileCall:
    """Apply the rules of audio-classification, whose scores are a softmax unless the call says otherwise.

    Raises ValidationFailed and TooManyRows.
    """
    return _call(AUDIO_TASK, body, model, "softmax")


def _call(task: str, body: FileBody, model: TaskModel, default: Function) -> FileCall:
    parameters = body.parameters or FileLabelParameters()
    top_k = check_top_k(parameters.top_k)
    check_files(body, model)
    function = parameters.function_to_apply or default
    labels = model.facts.labels

    def answer_of(result: RowResult) -> object:
        return best_first(labels, apply(function, logits_of(result)), top_k)

    return FileCall(task, body, LabelWish(), answer_of)
