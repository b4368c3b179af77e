"""Calls whose rows are files: what a body brings, and the call that each task of images or audio makes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import Answer, CallNotes
from textmill_router.tasks.file_input import FileInput
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import RowResult, WritingAnswer
from textmill_router.tasks.rows import FileRow, Row
from textmill_router.tasks.wishes import Wish


class ImageInputs(msgspec.Struct, gc=False):
    """An image as @huggingface/inference sends it beside texts."""

    image: str


@dataclass(frozen=True, slots=True)
class FileBody:
    """The files of a call, whether they came as a list, and the parameters as the struct of the task, or None."""

    files: Sequence[FileInput]
    is_list: bool
    parameters: Any


def plain_answer(found: list[object], is_list: bool) -> Answer:
    """Return the answer of one file, or the list of the answers of several files."""
    return Answer(found if is_list else found[0])


@dataclass(slots=True)
class FileCall:
    """A call that asks each of its files the same.

    `answer_of` makes the answer of one file. `join` makes the answer of the call from the answers of its files, and
    from whether the files came as a list.
    """

    task: str
    body: FileBody
    wish: Wish
    answer_of: Callable[[RowResult], object]
    join: Callable[[list[object], bool], Answer] = plain_answer
    notes: CallNotes = field(default_factory=CallNotes)

    @property
    def num_rows(self) -> int:
        return len(self.body.files)

    @property
    def num_characters(self) -> int:
        return sum(len(text) for file in self.body.files for text in file.texts)

    async def rows(self) -> list[Row | FileRow]:
        return [
            FileRow(await file.read(), self.wish, file.path, file.texts, file.texts_path) for file in self.body.files
        ]

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        answer = self.join([self.answer_of(result) for result in results], self.body.is_list)
        is_drawn = any(isinstance(result, WritingAnswer) and result.is_drawn for result in results)
        return replace(answer, is_drawn=is_drawn)


def body_of_inputs(body: Any) -> FileBody:
    """Return what a decoded body brings whose `inputs` are files."""
    inputs: str | ImageInputs | list[str | ImageInputs] = body.inputs
    if not isinstance(inputs, list):
        return FileBody([_input_of(inputs, "inputs")], is_list=False, parameters=body.parameters)
    files = [_input_of(each, f"inputs[{index}]") for index, each in enumerate(inputs)]
    return FileBody(files, is_list=True, parameters=body.parameters)


def _input_of(one: str | ImageInputs, path: str) -> FileInput:
    return FileInput(one, path) if isinstance(one, str) else FileInput(one.image, f"{path}.image")


def body_of_file(file: bytes, parameters: Any) -> FileBody:
    """Return what a body brings that is a file."""
    return FileBody([FileInput(file)], is_list=False, parameters=parameters)


def with_texts(body: FileBody, texts: tuple[str, ...], path: str) -> FileBody:
    """Return the body with texts of the call about each of its files; `path` names the texts in an error."""
    return replace(body, files=[replace(file, texts=texts, texts_path=path) for file in body.files])


def check_files(body: FileBody, model: TaskModel) -> None:
    """Check number and form of the files before they are decoded. Raises ValidationFailed and TooManyRows."""
    model.check_count(len(body.files), "inputs")
    for file in body.files:
        file.check()


def check_top_k(top_k: int | None) -> int:
    """Return how many labels are wanted, 5 without a wish. Raises ValidationFailed."""
    if top_k is not None and top_k < 1:
        raise ValidationFailed(f"`parameters.top_k` must be at least 1, found {top_k}", field="parameters.top_k")
    return 5 if top_k is None else top_k
