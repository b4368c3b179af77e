"""Which of several children ended first."""

import asyncio
import io
import os
import signal
import sys

from textmill_launcher.child_name import ChildName
from textmill_launcher.child_process import ChildProcess
from textmill_launcher.child_watch import wait_for_an_end
from textmill_launcher.logs import ChildOutput

LIMIT_S = 20.0


def test_child_that_ended_first_is_named_although_a_later_one_stands_before_it() -> None:
    async def main() -> None:
        output = ChildOutput(io.StringIO(), json_output=False)
        sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
        ranks = [ChildProcess.spawn(ChildName("shard", rank), sleeper, os.environ, output) for rank in range(2)]
        try:
            os.kill(ranks[1].pid, signal.SIGKILL)
            await ranks[1].wait()
            os.kill(ranks[0].pid, signal.SIGKILL)
            await ranks[0].wait()
            assert await wait_for_an_end(ranks) is ranks[1]
        finally:
            for rank in ranks:
                await rank.stop(0.0)

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))
