"""Lets several tasks wait until something that they look at may have changed."""

import asyncio


class Changes:
    """A waiter first looks whether what it wants holds already, and looks again after each `wait`."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def tell(self) -> None:
        """Wake all that wait."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, limit_s: float | None = None) -> None:
        """Wait for the next change, or for `limit_s` at most."""
        try:
            async with asyncio.timeout(limit_s):
                await self._next.wait()
        except TimeoutError:
            return
