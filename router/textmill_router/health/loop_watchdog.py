"""Tells the log where the event loop stands when the loop stops turning, because then no probe is answered.

A thread of its own looks, so that the report comes while the loop still hangs.
"""

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

BEAT_S = 0.5
HANG_S = 3.0
_MAX_FRAMES = 12


class LoopWatchdog:
    """An async context manager around the life of an event loop.

    The loop beats every `beat_s` seconds, and calls `on_beat` with each beat. Once the last beat is `hang_s` seconds
    older than that, one line of the log has the innermost calls of the loop's thread, and a second line says when the
    loop turns again.
    """

    def __init__(
        self, *, on_beat: Callable[[], object] = lambda: None, beat_s: float = BEAT_S, hang_s: float = HANG_S
    ) -> None:
        self._on_beat = on_beat
        self._beat_s = beat_s
        self._hang_s = hang_s
        self._beaten_s = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watchdog", daemon=True)
        self._timer: asyncio.TimerHandle | None = None
        self._loop_thread = 0

    async def __aenter__(self) -> Self:
        self._loop_thread = threading.get_ident()
        self._beat(asyncio.get_running_loop())
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        if self._timer is not None:
            self._timer.cancel()
        self._thread.join(self._hang_s)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beaten_s = time.monotonic()
        self._timer = loop.call_later(self._beat_s, self._beat, loop)
        self._on_beat()

    def _watch(self) -> None:
        hung_beat_s: float | None = None
        while not self._is_over.wait(self._beat_s):
            beaten_s = self._beaten_s
            if hung_beat_s is not None and beaten_s != hung_beat_s:
                log.warning("the event loop turns again", extra={"hung_s": round(beaten_s - hung_beat_s, 1)})
                hung_beat_s = None
            age_s = time.monotonic() - beaten_s
            if hung_beat_s is None and age_s > self._beat_s + self._hang_s:
                hung_beat_s = beaten_s
                frame = sys._current_frames().get(self._loop_thread)
                calls = [] if frame is None else traceback.extract_stack(frame)[-_MAX_FRAMES:]
                place = " > ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in calls)
                log.error("the event loop has not turned for %.1f s; it stands in %s", age_s, place)
