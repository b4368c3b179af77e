"""Questions about pictures and pages: what a body brings, in the forms that clients send."""

from dataclasses import replace
from typing import Any

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.file_call import FileBody, check_files
from textmill_router.tasks.file_input import FileInput
from textmill_router.tasks.model import TaskModel


class PictureQuestion(msgspec.Struct, gc=False):
    """A picture in base64, and a question about the picture."""

    image: str
    question: str | None = None


class PictureQuestionFields(msgspec.Struct, gc=False):
    """The fields of a body of questions but its parameters.

    The client of huggingface_hub sends `question` and `image` beside `inputs`, and the picture in `inputs` too.
    """

    inputs: PictureQuestion | str | list[PictureQuestion] | None = None
    question: str | None = None
    image: str | None = None


def body_of_questions(body: Any) -> FileBody:
    """Return the pictures with their questions, which stand in `inputs` or beside it. Raises ValidationFailed."""
    inputs: PictureQuestion | str | list[PictureQuestion] | None = body.image if body.inputs is None else body.inputs
    if inputs is None:
        raise ValidationFailed("`inputs` is missing; send an object with `image` and `question`", field="inputs")
    if isinstance(inputs, list):
        files = [_input_of(each, f"inputs[{index}]", body.question) for index, each in enumerate(inputs)]
        return FileBody(files, is_list=True, parameters=body.parameters)
    if isinstance(inputs, str):
        path = "image" if body.inputs is None else "inputs"
        file = FileInput(inputs, path, () if body.question is None else (body.question,))
    else:
        file = _input_of(inputs, "inputs", body.question)
    return FileBody([file], is_list=False, parameters=body.parameters)


def _input_of(one: PictureQuestion, path: str, question: str | None) -> FileInput:
    own = question if one.question is None else one.question
    return FileInput(one.image, f"{path}.image", () if own is None else (own,))


def check_questions(body: FileBody, model: TaskModel, question: str | None, *, words: tuple[str, ...] = ()) -> FileBody:
    """Return the body whose files have their question as a text, and behind the question the words of the page.

    `question` is the one of a call whose body is a file. Raises ValidationFailed and TooManyRows.
    """
    check_files(body, model)
    return replace(body, files=[_checked(file, model, question, words) for file in body.files])


def _checked(file: FileInput, model: TaskModel, question: str | None, words: tuple[str, ...]) -> FileInput:
    place = "inputs" if file.path == "image" else file.path.removesuffix(".image")
    path = f"{place}.question"
    asked = file.texts[0] if file.texts else question
    if asked is None:
        raise ValidationFailed(f"`{path}` is missing; send a question about the picture", field=path)
    model.check_text(asked.strip(), path)
    return replace(file, texts=(asked, *words), texts_path=place if words else path)
