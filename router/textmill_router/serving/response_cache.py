"""Whole answers kept for equal requests: least recently used go first, bounded by bytes."""

from collections import OrderedDict
from dataclasses import dataclass

ENTRY_OVERHEAD_BYTES = 512  # key, counters and the index's own share


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """The body of an answer with status 200, whole or all events of a stream, and what its headers tell."""

    body: bytes
    num_characters: int
    num_prompt_tokens: int
    num_output_tokens: int


class ResponseCache:
    """Keys are digests of everything that an answer depends on; the caller sees to that."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._answers: OrderedDict[bytes, CachedAnswer] = OrderedDict()
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0

    @property
    def is_on(self) -> bool:
        """Whether anything can be kept."""
        return self._max_bytes > 0

    def get(self, key: bytes) -> CachedAnswer | None:
        """The answer, counted as used now."""
        answer = self._answers.get(key)
        if answer is None:
            self.num_misses += 1
            return None
        self._answers.move_to_end(key)
        self.num_hits += 1
        return answer

    def put(self, key: bytes, answer: CachedAnswer) -> None:
        """Keep an answer, unless it alone is larger than the cache."""
        size = _size(answer)
        if size > self._max_bytes:
            return
        known = self._answers.pop(key, None)
        if known is not None:
            self.num_bytes -= _size(known)
        self._answers[key] = answer
        self.num_bytes += size
        while self.num_bytes > self._max_bytes:
            _, oldest = self._answers.popitem(last=False)
            self.num_bytes -= _size(oldest)


def _size(answer: CachedAnswer) -> int:
    return len(answer.body) + ENTRY_OVERHEAD_BYTES
