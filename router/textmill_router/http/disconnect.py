"""Ends the work of a call when its client leaves, whether the answer is a stream or not."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from starlette.types import Receive

from textmill_router.http.json_body import ClientLeft


class UntilClientLeaves:
    """A context manager around the work of one call, which ends in ClientLeft when the client closes the connection.

    The body has been read before. One task per call waits for the news, so that a token costs nothing. `on_abort` is
    called once when the client has left.
    """

    def __init__(self, receive: Receive, on_abort: Callable[[], None]) -> None:
        self._receive = receive
        self._on_abort = on_abort
        self._has_left = False
        self._worker: asyncio.Task[object] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._worker = asyncio.current_task()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The tasks are forgotten here, because a task that was cancelled keeps its frames, which refer to this object.
        watcher, self._watcher = self._watcher, None
        worker, self._worker = self._worker, None
        assert watcher is not None
        assert worker is not None
        watcher.cancel()
        if not self._has_left:
            return
        # The cancellation by `_watch` ends here. A cancellation from outside, as when the server leaves, goes on.
        if worker.uncancel() == 0 and (kind is None or kind is asyncio.CancelledError):
            raise ClientLeft

    async def _watch(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._has_left = True
                self._on_abort()
                assert self._worker is not None
                self._worker.cancel()
                return
