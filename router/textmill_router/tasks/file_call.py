"""Calls whose rows are files: what a body brings, and the call that each task of images or audio makes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import Answer, CallNotes
from textmill_router.tasks.file_input import FileInput
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.rows import FileRow, Row, RowResult, Wish


@dataclass(frozen=True, slots=True)
class FileBody:
    """The files of a call, whether they came as a list, and the parameters as the struct of the task, or None."""

    files: Sequence[FileInput]
    is_list: bool
    parameters: Any


@dataclass(slots=True)
class FileCall:
    """A call that asks each of its files the same. `answer_of` makes the answer of one file."""

    task: str
    body: FileBody
    wish: Wish
    answer_of: Callable[[RowResult], object]
    notes: CallNotes = field(default_factory=CallNotes)

    @property
    def num_rows(self) -> int:
        return len(self.body.files)

    @property
    def num_characters(self) -> int:
        return 0

    async def rows(self) -> list[Row | FileRow]:
        return [FileRow(await file.read(), self.wish, file.path) for file in self.body.files]

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        found = [self.answer_of(result) for result in results]
        return Answer(found if self.body.is_list else found[0])


def body_of_json(inputs: str | list[str], parameters: Any) -> FileBody:
    """Return what a body in JSON brings."""
    if isinstance(inputs, str):
        return FileBody([FileInput(inputs)], is_list=False, parameters=parameters)
    files = [FileInput(text, f"inputs[{index}]") for index, text in enumerate(inputs)]
    return FileBody(files, is_list=True, parameters=parameters)


def body_of_file(file: bytes, parameters: Any) -> FileBody:
    """Return what a body brings that is a file."""
    return FileBody([FileInput(file)], is_list=False, parameters=parameters)


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
