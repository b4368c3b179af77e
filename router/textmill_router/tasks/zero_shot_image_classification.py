"""zero-shot-image-classification: how well each label of the call fits an image."""

import msgspec

from textmill_router.tasks.call import ClientShapes
from textmill_router.tasks.candidate_labels import LABELS_PATH, check_lengths, checked_labels, checked_template
from textmill_router.tasks.file_call import FileBody, FileCall, ImageInputs, check_files, with_texts
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import Numbers, RowResult
from textmill_router.tasks.wishes import PairScoreWish

TASK = "zero-shot-image-classification"
DEFAULT_TEMPLATE = "This is a photo of {}."


class ImageLabelsParameters(msgspec.Struct, gc=False):
    """The parameters of zero-shot-image-classification. The labels may be one string with commas."""

    candidate_labels: list[str] | str | None = None
    hypothesis_template: str | None = None


class ImageLabelsBody(msgspec.Struct, gc=False):
    """The body of zero-shot-image-classification in JSON."""

    inputs: str | ImageInputs | list[str | ImageInputs]
    parameters: ImageLabelsParameters | None = None


def image_labels_of_call(body: FileBody, model: TaskModel, shapes: ClientShapes) -> FileCall:
    """Apply the rules of zero-shot-image-classification. Raises ValidationFailed and TooManyRows."""
    parameters = body.parameters or ImageLabelsParameters()
    labels = checked_labels(parameters.candidate_labels, least=2)
    check_lengths(labels)
    template = checked_template(parameters.hypothesis_template, DEFAULT_TEMPLATE)
    check_files(body, model)

    def answer_of(result: RowResult) -> object:
        assert isinstance(result, Numbers)
        scored = sorted(zip(labels, result.values.tolist(), strict=True), key=lambda each: -each[1])
        return [{"label": label, "score": score} for label, score in scored]

    texts = tuple(template.replace("{}", label) for label in labels)
    return FileCall(TASK, with_texts(body, texts, LABELS_PATH), PairScoreWish(), answer_of)
