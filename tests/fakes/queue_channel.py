"""The channel between rank 0 and one follower, in one process: the follower is the thread of that name."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np
import torch
from textmill_shard.engine.rank_channel import RankEntry
from textmill_shard.slots.plan import IdArray

from tests.fakes.step_harness import WAIT_S


class QueueChannel:
    """A channel whose two ends are in one process. The channel keeps every entry for the test."""

    needs_plans = True

    def __init__(self) -> None:
        self.entries: list[RankEntry] = []
        self._queue: SimpleQueue[RankEntry | IdArray | torch.Tensor] = SimpleQueue()
        self.is_follower: Callable[[], bool] = lambda: threading.current_thread().name == "follower"

    def send(self, entry: RankEntry) -> None:
        self.entries.append(entry)
        self._queue.put(entry)

    def receive(self) -> RankEntry:
        entry = self._queue.get(timeout=WAIT_S)
        assert isinstance(entry, RankEntry)
        return entry

    def share_tokens(self, tokens_N: IdArray) -> IdArray:
        if not self.is_follower():
            self._queue.put(tokens_N.copy())
            return tokens_N
        tokens = self._queue.get(timeout=WAIT_S)
        assert isinstance(tokens, np.ndarray)
        assert len(tokens) == len(tokens_N)
        return tokens

    def share_tensor(self, tensor: torch.Tensor) -> None:
        if not self.is_follower():
            self._queue.put(tensor.clone())
            return
        shared = self._queue.get(timeout=WAIT_S)
        assert isinstance(shared, torch.Tensor)
        assert (shared.shape, shared.dtype) == (tensor.shape, tensor.dtype)
        tensor.copy_(shared)
