"""Brings the images of requests to one shard group, before the requests are admitted (rule 33 in docs/wire.md)."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from textmill_router.engine.adapter_calls import ShardAway
from textmill_router.engine.media_calls import MediaFull, MediaRefused, ask_for_media, put_media
from textmill_router.engine.shard_client import ShardClient
from textmill_router.media.media_item import MediaItem
from textmill_router.metrics.media_metrics import MediaCounts
from textmill_router.request import GenerationRequest, RequestId

if TYPE_CHECKING:
    from textmill_proto.v1 import shard_pb2_grpc

log = logging.getLogger(__name__)

LEASE_S = 20.0  # the shard holds an image for 30 s after it was put or asked for
ASK_AGAIN_S = 5.0  # when the images took longer, the first of them are asked for again
FULL_TIMEOUT_S = 60.0  # until the request fails, because leases of a router before this one end after 30 s
AWAY_TIMEOUT_S = 60.0  # until the request fails where calls fail and the stream lives
AWAY_RETRY_S = 0.5
MAX_HEARD = 4096  # images, some 100 bytes each
MAX_PUTS = 2  # at once, because the tensors of an image lie in memory meanwhile
_FIRST_RETRY_S = 0.05
_MAX_RETRY_S = 1.0


class MediaBringer:
    """The images on their way to one shard group.

    `on_ready` is called with a request and the time until which the shard holds the request's images. `on_failed` is
    called with a request whose images cannot be brought, and the reason. A lost stream ends everything, and calls
    neither.
    """

    def __init__(
        self,
        client: ShardClient,
        *,
        now: Callable[[], float],
        on_ready: Callable[[RequestId, float], None],
        on_failed: Callable[[RequestId, str], None],
        counts: MediaCounts,
    ) -> None:
        self._client = client
        self._now = now
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._counts = counts
        self._requests: dict[RequestId, asyncio.Task[None]] = {}
        self._puts: dict[bytes, asyncio.Task[None]] = {}  # by digest, shared by the requests that have the image
        self._heard: dict[bytes, None] = {}  # the last images that were to be brought: the shard may keep them
        self._turns = asyncio.Semaphore(MAX_PUTS)

    def bring(self, request: GenerationRequest) -> None:
        """Begin to bring the images of a request that the shard does not keep."""
        former = self._requests.get(request.request_id)
        if former is not None:
            former.cancel()
        task = self._requests[request.request_id] = asyncio.create_task(self._bring(request))
        task.add_done_callback(lambda done: self._forget(request.request_id, done))

    def cancel(self, request_id: RequestId) -> None:
        """Bring the images of this request no more. An image that is on its way arrives."""
        task = self._requests.get(request_id)
        if task is not None:
            task.cancel()

    def end(self) -> None:
        """End everything, because the stream is lost or the router stops."""
        for task in (*self._requests.values(), *self._puts.values()):
            task.cancel()
        self._requests.clear()
        self._puts.clear()

    def _forget(self, request_id: RequestId, task: "asyncio.Task[None]") -> None:
        if self._requests.get(request_id) is task:
            del self._requests[request_id]
        if not task.cancelled() and task.exception() is not None:
            log.error("images could not be brought", exc_info=task.exception())
            self._on_failed(request_id, "the images of this request could not be brought to the model server")

    async def _bring(self, request: GenerationRequest) -> None:
        deadline_s = self._now() + AWAY_TIMEOUT_S
        while True:
            try:
                leased_s = await self._bring_all({item.digest: item for item in request.media})
                break
            except ShardAway as error:
                # When the stream is lost too, the new epoch begins anew, and `end` has cancelled this task.
                if self._now() >= deadline_s:
                    self._on_failed(request.request_id, f"the model server took no images: {error}")
                    return
                await asyncio.sleep(AWAY_RETRY_S)
            except (MediaRefused, MediaFull) as error:
                self._on_failed(request.request_id, str(error))
                return
        self._on_ready(request.request_id, leased_s + LEASE_S)

    async def _bring_all(self, items: Mapping[bytes, MediaItem]) -> float:
        """Put the images that the shard lacks, and return a time from which on the leases of all images run."""
        num_asked = 0
        while True:
            began_s = self._now()
            doubtful = [digest for digest, item in items.items() if not item.is_new or digest in self._heard]
            kept = await ask_for_media(self._stub(), doubtful) if doubtful else frozenset()
            self._hear(items)
            if not num_asked:
                self._counts.num_hits += len(kept)
            num_asked += 1
            missing = [item for digest, item in items.items() if digest not in kept]
            own_puts = [await self._put_once(item) for item in missing]
            # An image that another request has put has a lease of that request alone.
            if all(own_puts) and (not missing or self._now() - began_s < ASK_AGAIN_S):
                return began_s

    def _hear(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            self._heard.pop(digest, None)
            self._heard[digest] = None
        while len(self._heard) > MAX_HEARD:
            del self._heard[next(iter(self._heard))]

    async def _put_once(self, item: MediaItem) -> bool:
        """Put an image, or wait for another request that puts the image now, and return whether this request put it."""
        task = self._puts.get(item.digest)
        is_own = task is None
        if task is None:
            task = self._puts[item.digest] = asyncio.create_task(self._put(item))
            task.add_done_callback(lambda done: self._forget_put(item.digest, done))
        await asyncio.shield(task)
        return is_own

    def _forget_put(self, digest: bytes, task: "asyncio.Task[None]") -> None:
        if self._puts.get(digest) is task:
            del self._puts[digest]
        if not task.cancelled():
            task.exception()  # those who wait have it

    async def _put(self, item: MediaItem) -> None:
        async with self._turns:
            try:
                tensors = await item.prepare()
            except Exception as error:
                raise MediaRefused(f"an image of this request could not be read again: {error}") from error
            retry_s = _FIRST_RETRY_S
            deadline_s = self._now() + FULL_TIMEOUT_S
            while True:
                try:
                    await put_media(self._stub(), item, tensors)
                    break
                except MediaFull:
                    if self._now() >= deadline_s:
                        raise
                    await asyncio.sleep(retry_s)
                    retry_s = min(2 * retry_s, _MAX_RETRY_S)
        self._counts.num_puts += 1
        self._counts.num_put_bytes += item.num_tensor_bytes

    def _stub(self) -> "shard_pb2_grpc.ShardAsyncStub":
        stub = self._client.stub
        if stub is None:
            raise ShardAway("the shards are away")
        return stub
