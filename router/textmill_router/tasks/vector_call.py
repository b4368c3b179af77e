"""A call whose texts become vectors. The routes that give vectors differ in the shape of the answer alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textmill_router.tasks.call import Answer, CallNotes
from textmill_router.tasks.row_results import RowResult
from textmill_router.tasks.rows import Row
from textmill_router.tasks.vectors import VectorRows


@dataclass(slots=True)
class VectorCall:
    """A `TaskCall` for the rows of `source`.

    `shape` makes the answer's JSON value of the results of the rows and of the number of tokens of all rows.
    """

    source: VectorRows
    task: str
    shape: Callable[[Sequence[RowResult], int], object]

    @property
    def num_rows(self) -> int:
        return len(self.source.texts)

    @property
    def num_characters(self) -> int:
        return self.source.num_characters

    @property
    def notes(self) -> CallNotes:
        return self.source.notes

    async def rows(self) -> list[Row]:
        return await self.source.rows()

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        return Answer(self.shape(results, num_tokens))
