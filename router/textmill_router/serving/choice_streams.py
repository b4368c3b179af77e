"""The sequences of one call, which begin together and are written side by side to one event stream."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from textmill_router.http.event_stream import EventStream
from textmill_router.request import GenerationRequest
from textmill_router.serving.call_record import CallRecord
from textmill_router.text.events import GenerationResult, TextOptions, TokenEvent
from textmill_router.text.generation import Generation


class ChoiceWriter(Protocol):
    """Turns the events of one sequence into chunks."""

    def encode(self, events: list[TokenEvent]) -> bytes:
        """Return the chunks of the events in one piece, which is empty while there is nothing to show."""


# Raises an error for a result that must not be shown.
ResultCheck = Callable[[GenerationResult], None]


async def start_all(
    stack: AsyncExitStack, record: CallRecord, requests: Sequence[GenerationRequest], options: TextOptions
) -> list[Generation]:
    """Submit all requests in one turn, so that the first request of a prompt computes the prompt for the others."""
    return [await stack.enter_async_context(record.start(request, options)) for request in requests]


async def stream_choices(
    stream: EventStream,
    generations: Sequence[Generation],
    writers: Sequence[ChoiceWriter],
    check: ResultCheck = lambda result: None,
) -> list[GenerationResult]:
    """Write all sequences and return their results in order; `check` runs before the last chunk of each is written.

    Raises GenerationFailed and what `check` raises.
    """
    if len(generations) == 1:
        return [await _stream_one(stream, generations[0], writers[0], check, asyncio.Lock())]
    lock = asyncio.Lock()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_stream_one(stream, generation, writer, check, lock))
                for generation, writer in zip(generations, writers, strict=True)
            ]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _stream_one(
    stream: EventStream, generation: Generation, writer: ChoiceWriter, check: ResultCheck, lock: asyncio.Lock
) -> GenerationResult:
    """Write one sequence. Tokens that come while the client does not read are merged into one chunk."""

    def write_now(events: list[TokenEvent]) -> bool:
        if not stream.can_write_now:
            return False
        data = writer.encode(events)
        if data:
            stream.write_now(data)
        return True

    generation.push_to(write_now)
    while True:
        events = await generation.next_events()
        async with lock:
            # More events may have come while another sequence was writing.
            if events[-1].result is None:
                events += generation.take_events()
            result = events[-1].result
            if result is not None:
                check(result)
            data = writer.encode(events)
            if data:
                await stream.write(data)
        if result is not None:
            return result
