"""The cache keeps the answers used last, within its bytes."""

from typing import Any

from textmill_router.api.tgi.types import TgiParameters
from textmill_router.http.call import open_call
from textmill_router.serving.reply_cache import cache_key
from textmill_router.serving.response_cache import ENTRY_OVERHEAD_BYTES, CachedAnswer, ResponseCache


def answer(size: int) -> CachedAnswer:
    return CachedAnswer(b"x" * (size - ENTRY_OVERHEAD_BYTES), 1, 2, 3)


def test_least_recently_used_goes_first() -> None:
    cache = ResponseCache(2500)
    cache.put(b"a", answer(1000))
    cache.put(b"b", answer(1000))
    assert cache.get(b"a") is not None
    cache.put(b"c", answer(1000))
    assert (cache.get(b"a") is not None, cache.get(b"b"), cache.get(b"c") is not None) == (True, None, True)
    assert cache.num_bytes == 2000
    assert (cache.num_hits, cache.num_misses) == (3, 1)


def test_same_key_is_replaced() -> None:
    cache = ResponseCache(2500)
    cache.put(b"a", answer(1000))
    cache.put(b"a", answer(2000))
    assert cache.num_bytes == 2000


def test_answer_larger_than_the_cache_is_not_kept() -> None:
    cache = ResponseCache(2500)
    cache.put(b"a", answer(1000))
    cache.put(b"b", answer(2501))
    assert cache.get(b"a") is not None
    assert cache.get(b"b") is None


def test_no_bytes_is_off() -> None:
    assert not ResponseCache(0).is_on


def test_keys_tell_numbers_of_any_size_apart() -> None:
    def key(most: int) -> bytes:
        grammar = {"type": "json", "value": {"type": "integer", "maximum": most}}
        scope: dict[str, Any] = {"headers": []}
        open_call(scope, "id")
        return cache_key(scope, "model", "generate", False, "hi", TgiParameters(grammar=grammar))

    assert key(10**30) == key(10**30)
    assert len({key(10**30), key(10**30 + 1), key(5)}) == 3
