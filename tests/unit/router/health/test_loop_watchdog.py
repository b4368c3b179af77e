"""A loop that hangs is named in the log with the place where it stands, while it still hangs."""

import asyncio
import logging
import threading
import time

import pytest
from textmill_router.health.loop_watchdog import LoopWatchdog

WAIT_S = 10.0


def stand_still(caplog: pytest.LogCaptureFixture) -> bool:
    """Block the loop until the watchdog has told the log, at most `WAIT_S`."""
    end_s = time.monotonic() + WAIT_S
    while not caplog.records and time.monotonic() < end_s:
        threading.Event().wait(0.01)
    return bool(caplog.records)


def test_hanging_loop_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with LoopWatchdog(beat_s=0.02, hang_s=0.05):
            assert stand_still(caplog), "the watchdog speaks while the loop hangs"
            async with asyncio.timeout(WAIT_S):
                while len(caplog.records) < 2:  # noqa: ASYNC110 - the log of another thread sets no event
                    await asyncio.sleep(0.01)

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    first, second = (record.getMessage() for record in caplog.records)
    assert "the event loop has not turned for" in first
    assert "stand_still" in first
    assert second == "the event loop turns again"


def test_turning_loop_is_not_told_and_leaves_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    beats = 0

    def count() -> None:
        nonlocal beats
        beats += 1

    async def run() -> None:
        async with LoopWatchdog(on_beat=count, beat_s=0.01, hang_s=5), asyncio.timeout(WAIT_S):
            while beats < 10:  # noqa: ASYNC110 - the beat itself is under test
                await asyncio.sleep(0.005)

    before = threading.active_count()
    asyncio.run(run())
    assert not caplog.records
    assert threading.active_count() == before
