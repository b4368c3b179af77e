"""image-to-text: a caption, or the words that stand in a picture."""

import msgspec

from textmill_router.tasks.call import Answer, ClientShapes
from textmill_router.tasks.file_call import FileBody, FileCall, check_files
from textmill_router.tasks.image_generation import ImageGeneration, writing_wish
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import RowResult, WritingAnswer

TASK = "image-to-text"


class ImageToTextParameters(ImageGeneration, gc=False):
    """The parameters of image-to-text. The fields of an inner object win over those beside it."""

    generate_parameters: ImageGeneration | None = None
    generation_parameters: ImageGeneration | None = None
    generate_kwargs: ImageGeneration | None = None


class ImageToTextBody(msgspec.Struct, gc=False):
    """The body of image-to-text in JSON."""

    inputs: str | list[str]
    parameters: ImageToTextParameters | None = None


def image_to_text_call(body: FileBody, model: TaskModel, shapes: ClientShapes) -> FileCall:
    """Apply the rules of image-to-text. Raises ValidationFailed and TooManyRows."""
    parameters = body.parameters or ImageToTextParameters()
    wish = writing_wish(
        parameters, parameters.generate_parameters, parameters.generation_parameters, parameters.generate_kwargs
    )
    check_files(body, model)

    def join(found: list[object], is_list: bool) -> Answer:
        """Return a flat list also for one image, but for clients that want the object of one image."""
        is_object = shapes.caption_is_object and not is_list
        return Answer(found[0] if is_object else found, varies_by_client=True)

    return FileCall(TASK, body, wish, _text_of, join)


def _text_of(result: RowResult) -> object:
    assert isinstance(result, WritingAnswer)
    return {"generated_text": result.text}
