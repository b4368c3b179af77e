"""Waits until one of several children ends, and finds the child that ended first."""

import asyncio
from collections.abc import Sequence

from textmill_launcher.child_process import ChildProcess


async def wait_for_an_end(children: Sequence[ChildProcess]) -> ChildProcess:
    """Return the child that has ended first.

    A rank that dies takes the other ranks along within milliseconds, because their connections to that rank close. So
    the order of the ends counts, and not the order in which the launcher hears of them.
    """
    waits = [asyncio.create_task(child.wait()) for child in children]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    return min((child for child in children if child.ended_s is not None), key=_end_time)


def _end_time(child: ChildProcess) -> float:
    assert child.ended_s is not None
    return child.ended_s
