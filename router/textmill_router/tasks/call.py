"""One call of a task: the rows that the call makes, and the answer that their results make."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from textmill_router.tasks.row_results import RowResult
from textmill_router.tasks.rows import AnyRow
from textmill_router.tasks.wishes import SoundFormat


@dataclass(slots=True)
class CallNotes:
    """What headers of the answer tell of a call. `num_truncated` counts texts whose end was cut.

    `is_repeatable` says that an equal call gets an equal answer.
    """

    num_truncated: int = 0
    warnings: list[str] = field(default_factory=list)
    is_repeatable: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON value, where a Grid stands for its rows as lists, or the bytes of another media type.

    `varies_by_client` says that another client gets another shape, `is_drawn` that another call gets another answer, so
    that the answer is not kept, and `is_long` that writing the value takes long.
    """

    value: object
    varies_by_client: bool = False
    media_type: bytes = b"application/json"
    is_drawn: bool = False
    is_long: bool = False


@dataclass(frozen=True, slots=True)
class ClientShapes:
    """The shapes of answers that a client needs; the defaults are those of the published page."""

    zero_shot_is_list: bool = False
    caption_is_object: bool = False
    sound_format: SoundFormat | None = SoundFormat.FLAC  # None: the client takes no format that is written here


class TaskCall(Protocol):
    """A call whose fields obey the rules of its task.

    `num_rows` is known before anything is tokenised; windows of long texts are not counted. `num_characters` are those
    of all strings of the inputs.
    """

    @property
    def task(self) -> str: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_characters(self) -> int: ...
    @property
    def notes(self) -> CallNotes: ...

    async def rows(self) -> Sequence[AnyRow]:
        """Tokenise texts, or decode base64. Raises ValidationFailed."""
        ...

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        """Return the answer. `results` are those of the rows in order, and `num_tokens` the tokens of all rows."""
        ...
