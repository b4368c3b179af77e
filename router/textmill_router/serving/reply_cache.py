"""The calls of TGI's dialect and the response cache: which calls are equal, and how a kept answer is sent."""

import hashlib
import logging
import time

from starlette.types import Scope, Send

from textmill_router.exact_json import encode_exactly
from textmill_router.http.call import call_of
from textmill_router.http.error_responses import Header
from textmill_router.http.event_stream import STREAM_HEADERS
from textmill_router.http.key_headers import shown_keys
from textmill_router.http.path_style import AUTHORIZATION
from textmill_router.http.replies import send_reply
from textmill_router.request import Adapter
from textmill_router.serving.adapter_header import adapter_headers
from textmill_router.serving.call import facts_of
from textmill_router.serving.response_cache import CachedAnswer, ResponseCache
from textmill_router.serving.service import Backend, Service
from textmill_router.serving.timings import NO_TIMINGS, timings_header

log = logging.getLogger(__name__)


def cache_key(scope: Scope, *facts: object) -> bytes:
    """Return a digest of the caller and of all facts on which the answer depends.

    The facts are written as JSON, in which a number may have any size.
    """
    return hashlib.blake2b(encode_exactly((_caller_facts(scope), *facts)), digest_size=32).digest()


def _caller_facts(scope: Scope) -> list[bytes]:
    """Return what tells the caller from others, whichever header the caller's key came in.

    A server without keys tells its callers apart by the keys that they show, and by what else `authorization` holds.
    """
    salt = call_of(scope).caller.salt
    if salt:
        return [salt]
    headers = scope["headers"]
    return sorted(set(shown_keys(headers))) or [value for name, value in headers if name == AUTHORIZATION.encode()]


class CacheSlot:
    """The place of the answer of one call in the cache."""

    def __init__(self, cache: ResponseCache, key: bytes) -> None:
        self._cache = cache
        self._key = key

    def find(self) -> CachedAnswer | None:
        """Return the answer of an equal call before, or None."""
        return self._cache.get(self._key)

    def keep(self, answer: CachedAnswer) -> None:
        """Keep a complete answer for equal calls that come later."""
        self._cache.put(self._key, answer)


async def send_cached(
    service: Service,
    backend: Backend,
    scope: Scope,
    send: Send,
    answer: CachedAnswer,
    *,
    streams: bool,
    adapter: Adapter | None,
) -> None:
    """Send a kept answer, whose headers say that nothing was queued or computed for the call."""
    service.metrics.on_cache_hit()
    counts = {"num_prompt_tokens": answer.num_prompt_tokens, "num_output_tokens": answer.num_output_tokens}
    facts = {**facts_of(call_of(scope)), "adapter": None if adapter is None else adapter.name}
    log.info("Success", extra={**facts, **counts, "status": 200, "is_kept": True})
    headers: list[Header] = [
        (b"x-cache", b"hit"),
        (b"x-compute-type", service.compute_type(backend.facts).encode("latin-1", "replace")),
        (b"x-compute-characters", b"%d" % answer.num_characters),
        *adapter_headers(adapter),
    ]
    if streams:
        event_type, *further = STREAM_HEADERS
        await send_reply(scope, send, 200, answer.body, content_type=event_type[1], headers=[*headers, *further])
        return
    total_s = time.monotonic() - call_of(scope).arrival_s
    headers += [
        (b"x-compute-time", b"%.6f" % total_s),
        (b"x-total-time", b"%d" % (total_s * 1000)),
        (b"x-validation-time", b"%d" % (total_s * 1000)),
        (b"x-queue-time", b"0"),
        (b"x-inference-time", b"0"),
        (b"x-time-per-token", b"0"),
        (b"x-prompt-tokens", b"%d" % answer.num_prompt_tokens),
        (b"x-generated-tokens", b"%d" % answer.num_output_tokens),
        (b"x-cached-prompt-tokens", b"%d" % answer.num_prompt_tokens),
        timings_header(NO_TIMINGS),
    ]
    await send_reply(scope, send, 200, answer.body, headers=headers)
