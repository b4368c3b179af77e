"""The shard groups of all replicas: each starts, is watched and starts again by itself."""

import asyncio
import logging
from collections.abc import Sequence

from textmill_launcher.errors import LaunchError
from textmill_launcher.shard_group import ShardGroup

log = logging.getLogger(__name__)


class ShardGroups:
    """Owns one `ShardGroup` for each replica. The owner runs `run` as a task, ends the task, and then calls `stop`."""

    def __init__(self, groups: Sequence[ShardGroup]) -> None:
        self._groups = groups

    async def wait_ready(self) -> None:
        """Wait until each group has been ready once."""
        await asyncio.gather(*(group.wait_ready() for group in self._groups))

    async def run(self) -> None:
        """Run all groups, for ever.

        A group that is given up after it was ready ends alone, while another group goes on. Raises the error of a
        group that is given up before it was ever ready, and the error of the last group.
        """
        runs = {asyncio.create_task(group.run()): number for number, group in enumerate(self._groups)}
        try:
            while True:
                done, going_on = await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
                for run in done:
                    number = runs.pop(run)
                    error = run.exception()
                    assert error is not None, "a group runs for ever"
                    is_bearable = isinstance(error, LaunchError) and self._groups[number].was_ready
                    if not (going_on and is_bearable):
                        raise error
                    log.error("replica %d is given up, %d of %d go on: %s", number, len(runs), len(self._groups), error)
        finally:
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)

    async def stop(self, hurry: asyncio.Event) -> None:
        """End all ranks of all groups at once."""
        await asyncio.gather(*(group.stop(hurry) for group in self._groups))
