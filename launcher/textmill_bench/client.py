"""One streamed request, with the time at which each event of output came."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx

from textmill_bench.dialects import Dialect, Told, Wish

MAX_ERROR_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of one request. Times are seconds on the clock of `time.perf_counter`."""

    due_s: float  # the time at which the request was to be sent
    sent_s: float  # later than `due_s` only where this client was late
    event_times_s: tuple[float, ...]  # of each event that carried output
    done_s: float
    status: int  # 0: no answer
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    num_output_tokens: int = 0  # as the server counts them, else the events
    error: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether the answer came whole, with output."""
        return self.error is None and bool(self.event_times_s)

    @property
    def ttft_s(self) -> float:
        """From the time at which the request was due to the first output."""
        return self.event_times_s[0] - self.due_s

    @property
    def e2e_s(self) -> float:
        """From the time at which the request was due to the end of the answer."""
        return self.done_s - self.due_s


async def send(client: httpx.AsyncClient, dialect: Dialect, wish: Wish, due_s: float | None = None) -> Record:
    """Send one request and read its stream to the end. A failure of the server or of the way to it is in the record."""
    sent_s = time.perf_counter()
    times: list[float] = []
    told = Told()
    status, error = 0, None
    try:
        async with client.stream("POST", dialect.path, json=dialect.body(wish)) as answer:
            status = answer.status_code
            if status != 200:
                await answer.aread()
                error = answer.text[:MAX_ERROR_CHARACTERS] or f"status {status}"
            else:
                async for payload in payloads_of(answer.aiter_bytes()):
                    now_s = time.perf_counter()
                    if dialect.read(payload, told):
                        times.append(now_s)
    except httpx.HTTPError as failure:
        error = f"{type(failure).__name__}: {failure}"
    if error is None:
        error = told.error or (None if told.is_finished else "the stream ended early")
    return Record(
        due_s=sent_s if due_s is None else due_s,
        sent_s=sent_s,
        event_times_s=tuple(times),
        done_s=time.perf_counter(),
        status=status,
        num_prompt_tokens=told.num_prompt_tokens,
        num_cached_tokens=told.num_cached_tokens,
        num_output_tokens=len(times) if told.num_output_tokens is None else told.num_output_tokens,
        error=error if error is not None or times else "the answer has no output",
    )


async def payloads_of(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Yield the payload of each server-sent event as soon as the event is whole. Comments are left out."""
    buffer = b""
    async for piece in pieces:
        buffer = (buffer + piece).replace(b"\r\n", b"\n")
        *events, buffer = buffer.split(b"\n\n")
        for event in events:
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield b"\n".join(lines).decode("utf-8", "replace")
