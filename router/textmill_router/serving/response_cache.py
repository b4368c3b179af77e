"""Whole answers kept for equal calls, up to a number of bytes; the least recently used answer is dropped first."""

from collections import OrderedDict
from dataclasses import dataclass

ENTRY_OVERHEAD_BYTES = 512  # for the key, the counters and the entry of the index


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """The body of an answer with status 200, which may be all events of a stream, and the numbers of its headers."""

    body: bytes
    num_characters: int
    num_prompt_tokens: int
    num_output_tokens: int
    media_type: bytes = b"application/json"
    varies_by_client: bool = False  # another client gets another shape of the answer


class ResponseCache:
    """The answers by key. The caller makes each key a digest of everything on which the answer depends."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._answers: OrderedDict[bytes, CachedAnswer] = OrderedDict()
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0

    @property
    def is_on(self) -> bool:
        """Whether answers are kept."""
        return self._max_bytes > 0

    def get(self, key: bytes) -> CachedAnswer | None:
        """Return the answer of a key, which counts as used now, or None."""
        answer = self._answers.get(key)
        if answer is None:
            self.num_misses += 1
            return None
        self._answers.move_to_end(key)
        self.num_hits += 1
        return answer

    def put(self, key: bytes, answer: CachedAnswer) -> None:
        """Keep an answer, unless the answer alone is larger than the cache."""
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
