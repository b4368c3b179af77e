"""Notices that files have changed, by looking at them once in a while."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
_Signature = tuple[int, int, int]


class FileWatch:
    """Watches files from its making on. `run` calls `on_change` after each change of one of them.

    A file has changed when the path leads to another file, to another size or to another time of writing, so a folder
    whose links are switched, as Kubernetes does with secrets, counts too. A file that is gone has not changed yet.
    """

    def __init__(self, paths: Sequence[str], on_change: Callable[[], Awaitable[None]]) -> None:
        self._paths = tuple(paths)
        self._on_change = on_change
        self._known = self._look()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            found = await asyncio.to_thread(self._look)
            if None not in found and found != self._known:
                self._known = found
                try:
                    await self._on_change()
                except Exception:  # a mistake of the server must not end the watch: later changes count too
                    log.exception("a changed file was not taken", extra={"paths": self._paths})

    def _look(self) -> list[_Signature | None]:
        return [_signature(path) for path in self._paths]


def _signature(path: str) -> _Signature | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
