"""One TCP connection between two launchers: messages, signs of life, and the moment at which the other side is lost."""

import asyncio
import contextlib
from collections.abc import Callable

import msgspec

from textmill_launcher.nodes.messages import Alive, Message, decode, encode

ALIVE_INTERVAL_S = 1.0
SILENCE_LIMIT_S = 10.0  # without a message, after which the other side counts as lost
MAX_MESSAGE_BYTES = 1024**2
CLOSE_LIMIT_S = 1.0


class LinkLost(Exception):
    """The other side is gone. `str()` says how, in words that follow the name of the node."""


class Link:
    """Sends and receives messages. Whoever makes a link closes it. `is_busy` is what the link tells the other side."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        is_busy: Callable[[], bool] = lambda: False,
        silence_s: float = SILENCE_LIMIT_S,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._is_busy = is_busy
        self._silence_s = silence_s
        self._alive = asyncio.create_task(self._say_alive())
        self.is_other_busy = False

    @property
    def peer(self) -> str:
        """The address of the other side."""
        name = self._writer.get_extra_info("peername")
        return str(name[0]) if name else "a closed connection"

    @property
    def own_address(self) -> str:
        """The address of this side."""
        return str(self._writer.get_extra_info("sockname")[0])

    def send(self, message: Message) -> None:
        """Send a message. A connection that is gone swallows the message, and `receive` tells."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def receive(self) -> Message:
        """Return the next message that is no sign of life. Raises `LinkLost`."""
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    line = await self._reader.readline()
                message = decode(line) if line.endswith(b"\n") else None
            except TimeoutError:
                raise LinkLost(f"has said nothing for {self._silence_s:g} s") from None
            except OSError as error:
                raise LinkLost(f"is gone ({error.strerror or error})") from None
            except (ValueError, msgspec.DecodeError):  # a line that is too long raises ValueError
                raise LinkLost("has sent what is no message of a launcher of this version") from None
            if message is None:
                raise LinkLost("has closed the connection")
            if not isinstance(message, Alive):
                return message
            self.is_other_busy = message.is_busy

    async def close(self) -> None:
        """Close the connection, after a short time for what was sent."""
        self._alive.cancel()
        try:
            await asyncio.gather(self._alive, return_exceptions=True)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_LIMIT_S):
                    self._writer.close()
                    await self._writer.wait_closed()
        finally:
            self._writer.transport.abort()

    async def _say_alive(self) -> None:
        while True:
            self.send(Alive(self._is_busy()))
            await asyncio.sleep(ALIVE_INTERVAL_S)
