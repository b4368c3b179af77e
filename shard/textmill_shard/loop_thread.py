"""The thread of a step loop, and the exception that ended the loop."""

import threading
from collections.abc import Callable

from textmill_shard.device import claim_device


class LoopThread:
    """Runs the loop of a rank in a thread of its own, which computes on the device of the rank."""

    def __init__(self, run: Callable[[], None], device: str) -> None:
        self._run = run
        self._device = device
        self.done = threading.Event()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._body, name="step-loop", daemon=True)
        self._thread.start()

    def _body(self) -> None:
        try:
            claim_device(self._device)
            self._run()
        except Exception as error:  # handed to the main thread, which ends the process
            self.error = error
        finally:
            self.done.set()
