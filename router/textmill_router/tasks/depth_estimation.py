"""depth-estimation: the depth of each pixel of an image."""

from base64 import b64encode

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import Answer, ClientShapes
from textmill_router.tasks.file_call import FileBody, FileCall, ImageInputs, check_files
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import DepthAnswer, RowResult
from textmill_router.tasks.wishes import DepthWish

TASK = "depth-estimation"
MAX_PIXELS = 1 << 24  # of all images of a call, whose answer in JSON has some 20 bytes for each pixel


class DepthParameters(msgspec.Struct, gc=False):
    """The parameters of depth-estimation, of which there are none."""


class DepthBody(msgspec.Struct, gc=False):
    """The body of depth-estimation in JSON."""

    inputs: str | ImageInputs | list[str | ImageInputs]
    parameters: DepthParameters | None = None


def depth_call(body: FileBody, model: TaskModel, shapes: ClientShapes) -> FileCall:
    """Apply the rules of depth-estimation. Raises ValidationFailed and TooManyRows."""
    check_files(body, model)
    return FileCall(TASK, body, DepthWish(), _shown, _joined)


def _shown(result: RowResult) -> DepthAnswer:
    assert isinstance(result, DepthAnswer)
    return result


def _joined(found: list[object], is_list: bool) -> Answer:
    """Return the answer of the call. Raises ValidationFailed for images whose depths are too many numbers together."""
    depths = [each for each in found if isinstance(each, DepthAnswer)]
    num_pixels = sum(len(each.depths.values) for each in depths)
    if num_pixels > MAX_PIXELS:
        raise ValidationFailed(
            f"`inputs` has {num_pixels} pixels in all images, and an answer has depths of at most {MAX_PIXELS}; send "
            "fewer or smaller images",
            field="inputs",
        )
    shown = [{"predicted_depth": each.depths, "depth": b64encode(each.picture).decode()} for each in depths]
    return Answer(shown if is_list else shown[0], is_long=True)
