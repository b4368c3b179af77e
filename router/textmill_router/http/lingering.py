"""Ends an answer at once and its connection later, so that a client that still sends gets to see the answer.

A kernel that closes a connection with unread bytes sends a reset, and the reset may take the answer away from the
client (RFC 9112, 9.6).
"""

import asyncio
from collections.abc import Callable
from typing import Any

# The most that is read and thrown away of a request that has been answered.
MAX_DISCARDED_BYTES = 32 << 20
LINGER_S = 5.0
LEAST_BYTES_PER_S = 16_384  # a client that sends faster than this may take longer


class LingeringTransport:
    """A transport whose `close` waits for the client's end where `is_client_sending`.

    The transport behaves as closed meanwhile. The protocol hands the bytes that still come to `discard`.
    """

    def __init__(self, transport: asyncio.Transport, is_client_sending: Callable[[], bool]) -> None:
        self._transport = transport
        self._is_client_sending = is_client_sending
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._began_s = 0.0
        self._num_discarded_bytes = 0
        self.is_lingering = False
        self.write = transport.write  # once per token, so without a detour

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if self.is_lingering:
            return
        if self._transport.is_closing() or not self._is_client_sending():
            self._transport.close()
            return
        self.is_lingering = True
        self._began_s = self._loop.time()
        self._transport.resume_reading()  # reading may be paused, because nobody took the body
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.write = _drop  # an application that has begun meanwhile may still answer, and nobody reads its answer
        self._timer = self._loop.call_later(LINGER_S, self._on_timer)

    def is_closing(self) -> bool:
        return self.is_lingering or self._transport.is_closing()

    def discard(self, num_bytes: int) -> None:
        """Count bytes that nobody reads, and end the connection where they are too many."""
        self._num_discarded_bytes += num_bytes
        if self._num_discarded_bytes > MAX_DISCARDED_BYTES:
            self._transport.abort()

    def stop(self) -> None:
        """Forget the protocol and the timer, because the connection is over."""
        self._is_client_sending = (
            _never  # a method of the protocol would close a circle, which only the collector frees
        )
        if self._timer is not None:
            self._timer.cancel()

    def _on_timer(self) -> None:
        allowed_s = LINGER_S + self._num_discarded_bytes / LEAST_BYTES_PER_S
        left_s = self._began_s + allowed_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._on_timer)
        else:
            self._transport.abort()


def _drop(data: object) -> None:
    """Write nothing, as a closed transport does."""


def _never() -> bool:
    return False
