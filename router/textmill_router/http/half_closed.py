"""Tells a client that has closed its side and waits for the answer from a client that is gone.

Both send the same sign, the end of their bytes. Bytes that come to a client that is gone are answered with a reset. So
the server sends a filler that a waiting client passes over, and asks the socket whether a reset has come.
"""

import asyncio
import socket
from collections.abc import Callable

FIRST_LOOK_S = 0.01
LONGEST_LOOK_S = 1.0
FILLER_S = 15.0  # between two fillers, because a client may also go while it waits


class HalfClosedWatch:
    """Looks after one connection from the end of the client's bytes on, until `stop`.

    `write_filler` sends bytes that change no answer, if there are such bytes now. `on_gone` is called once, when the
    client is gone.
    """

    def __init__(
        self, connection: socket.socket, write_filler: Callable[[], None], on_gone: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._write_filler = write_filler
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._wait_s = FIRST_LOOK_S
        self._filled_s = self._loop.time()
        self._write_filler()
        self._timer = self._loop.call_later(self._wait_s, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._on_gone()
            return
        now_s = self._loop.time()
        if now_s - self._filled_s >= FILLER_S:
            self._filled_s = now_s
            self._write_filler()
        self._wait_s = min(2 * self._wait_s, LONGEST_LOOK_S)
        self._timer = self._loop.call_later(self._wait_s, self._look)
