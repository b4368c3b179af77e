"""The frame around the rows of each call of a task: permits, the client's leaving, the deadline, errors."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from starlette.types import Receive, Scope

from textmill_router.engine.row_engine import EngineEnded, FileRefused, RowsFailed
from textmill_router.errors import DeadlineMissed, GenerationBroke, ShuttingDown, ValidationFailed
from textmill_router.http.api_keys import Caller
from textmill_router.http.disconnect import UntilClientLeaves
from textmill_router.serving.call_options import wait_if_asked
from textmill_router.serving.call_terms import CallTerms
from textmill_router.serving.row_backend import RowBackend
from textmill_router.serving.service import Service
from textmill_router.tasks.call import TaskCall
from textmill_router.tasks.names import is_file_task
from textmill_router.tasks.row_results import RowResult
from textmill_router.tasks.rows import FileRow, Row, StringRow, TableRow


@dataclass(frozen=True, slots=True)
class RowTimes:
    """The tokens of a call's rows, the seconds that the rows waited and were computed, and their seconds of audio."""

    num_tokens: int
    queue_s: float
    inference_s: float
    audio_s: float = 0.0


@contextmanager
def hold_files(service: Service, body: bytes, caller: Caller) -> Iterator[None]:
    """Hold room for the bytes of a body with files until the block is left. A body of texts needs no such room.

    Raises Overloaded and Recovering when the bodies of other calls leave too little room, and ValidationFailed for a
    body that has more bytes than there is room at all.
    """
    if not is_file_task(service.settings.task):
        yield
        return
    most = service.file_bytes.most_for(caller)
    if len(body) > most:
        raise ValidationFailed(
            f"the body has {len(body)} bytes, and the most is {most} ({service.file_bytes.flag}); send smaller files"
        )
    with service.file_bytes.hold(max(1, len(body)), caller):  # an empty body is refused later, by its path
        yield


async def ready_rows(service: Service, scope: Scope, receive: Receive, *, wait_for_model: bool | None) -> RowBackend:
    """Return the backend, and wait for it while it loads if header or body say so. The body has been read before.

    Raises ModelLoading, ShuttingDown, ClientLeft, and Overloaded when too many calls wait.
    """
    await wait_if_asked(service, scope, receive, wait_for_model)
    return service.open_row_backend()


@asynccontextmanager
async def compute_rows(
    service: Service, backend: RowBackend, receive: Receive, call: TaskCall, terms: CallTerms
) -> AsyncIterator[tuple[list[RowResult], RowTimes]]:
    """Tokenise and compute the rows of a call, and give their results. The client is watched until the block ends.

    Raises ClientLeft, ValidationFailed, Overloaded, Recovering, ShuttingDown, GenerationBroke and DeadlineMissed.
    """
    most = service.permits.most_for(terms.caller)
    if call.num_rows > most:
        raise ValidationFailed(
            f"this request needs {call.num_rows} rows at once, and the most is {most} ({service.permits.flag}); "
            "send fewer"
        )
    service.permits.check_room(call.num_rows, terms.caller)
    async with UntilClientLeaves(receive, service.metrics.on_abort):
        with service.permits.hold(call.num_rows, terms.caller):
            yield await _compute(backend, call, terms.deadline_s)


async def _compute(backend: RowBackend, call: TaskCall, deadline_s: float | None) -> tuple[list[RowResult], RowTimes]:
    left_s = None if deadline_s is None else deadline_s - time.monotonic()
    try:
        async with asyncio.timeout(left_s):
            rows = await call.rows()
            if not rows:  # texts without a token
                return [], RowTimes(0, 0.0, 0.0)
            found = await backend.engine.compute(rows)
    except TimeoutError:
        raise DeadlineMissed("the answer was not complete within the time of x-request-timeout-ms") from None
    except FileRefused as error:
        row = rows[error.index]
        assert isinstance(row, FileRow | TableRow | StringRow)
        path = row.path
        if isinstance(row, FileRow) and error.is_of_text and row.texts_path:
            path = row.texts_path
        raise ValidationFailed(f"`{path}`: {error}", field=path) from error
    except RowsFailed as error:
        row = rows[error.index]
        # Texts may be cut into several rows, so that a row alone does not tell its text.
        path = "" if len(rows) == 1 or isinstance(row, Row) else f"`{row.path}`: "
        raise GenerationBroke(f"{path}{error}") from error
    except EngineEnded as error:
        raise ShuttingDown(f"the engine has stopped: {error}", retry_after_s=1) from error
    num_tokens = sum(row.num_tokens for row in rows) + found.num_shard_tokens
    return found.rows, RowTimes(num_tokens, found.times.queue_s, found.times.inference_s, found.audio_s)
