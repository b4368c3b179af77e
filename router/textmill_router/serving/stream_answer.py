"""The frame of an answer in events: its headers, its end, and an error that comes after its first event."""

from collections.abc import Awaitable, Callable

from starlette.types import Scope, Send

from textmill_router.errors import RequestError
from textmill_router.http.call import call_of
from textmill_router.http.event_stream import EventStream
from textmill_router.serving.call_record import CallRecord
from textmill_router.serving.failures import generation_error
from textmill_router.text.events import GenerationFailed


async def stream_answer(
    scope: Scope,
    send: Send,
    record: CallRecord,
    write: Callable[[EventStream], Awaitable[bytes]],
    *,
    end: bytes = b"",
) -> None:
    """Answer in events. `write` sends events and returns the last events, which stand before `end`.

    An error after the first event is sent as an event.

    Raises GenerationFailed and RequestError while nothing has been sent.
    """
    stream = EventStream(scope, send, record.stream_headers(), record.open_streams)
    try:
        last = await write(stream)
        await stream.end(last + end)
    except (GenerationFailed, RequestError) as failed:
        if not stream.is_started:
            raise
        error = failed if isinstance(failed, RequestError) else generation_error(failed.failure)
        record.note_failure(error)
        await stream.end(call_of(scope).error_style.event_of(error) + end)
    finally:
        stream.close()
