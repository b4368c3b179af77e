"""The adapters that one shard group holds in this epoch, and how a new epoch gets those that the router needs."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from textmill_router.adapters.registry import AdapterFacts, AdapterRegistry
from textmill_router.engine.adapter_calls import AdapterInUse, AdapterRefused, ShardAway, load_adapter, unload_adapter
from textmill_router.engine.shard_client import ShardClient

if TYPE_CHECKING:
    from textmill_proto.v1 import shard_pb2_grpc

log = logging.getLogger(__name__)

UNLOAD_TIMEOUT_S = 60.0  # in which the slots of ended requests are dropped
_FIRST_RETRY_S = 0.01
_MAX_RETRY_S = 0.5


class AdapterPlaces:
    """The digests that a shard group holds. The engine loop begins an epoch when they are what the registry wants.

    `on_lost` is called with a digest that the shards could not load again, and the reason. It withdraws the digest.
    """

    def __init__(self, client: ShardClient, registry: AdapterRegistry, on_lost: Callable[[bytes, str], None]) -> None:
        self._client = client
        self._registry = registry
        self._on_lost = on_lost
        self._digests: set[bytes] = set()
        self._epoch = 0  # counts the streams, so that an answer of an older one counts for nothing

    def begin(self, digests: Iterable[bytes]) -> None:
        """Note the digests of a Hello."""
        self._epoch += 1
        self._digests = set(digests)

    def end(self) -> None:
        """Note that the stream is lost. Calls under way raise ShardAway."""
        self._epoch += 1
        self._digests.clear()

    def holds(self, digest: bytes) -> bool:
        """Whether the shards hold the adapter in this epoch."""
        return digest in self._digests

    @property
    def is_complete(self) -> bool:
        """Whether the shards hold just the adapters that are named or held."""
        return self._digests == self._registry.wanted().keys()

    async def restore(self) -> None:
        """Load what is wanted and unload what is not, until both agree in one turn of the loop. Raises ShardAway.

        A digest that the shards cannot load again is withdrawn.
        """
        while not self.is_complete:
            wanted = self._registry.wanted()
            for digest in self._digests - wanted.keys():
                await self.unload(digest)
            for digest, folder in wanted.items():
                if digest not in self._digests:
                    try:
                        await self.load(folder, digest)
                    except AdapterRefused as error:
                        self._on_lost(digest, str(error))

    async def load(self, folder: str, expected_digest: bytes = b"") -> AdapterFacts:
        """Load an adapter on every rank. Raises AdapterRefused, and ShardAway also where the stream was lost since."""
        epoch = self._epoch
        facts = await load_adapter(self._stub(), folder, expected_digest)
        self._check_epoch(epoch)
        if expected_digest and facts.digest != expected_digest:
            raise AdapterRefused(f"the digest is {facts.digest.hex()}, wanted {expected_digest.hex()}")
        self._digests.add(facts.digest)
        return facts

    async def unload(self, digest: bytes) -> None:
        """Give up an adapter on every rank, once the slots of the requests that had it are dropped. Raises ShardAway.

        An adapter that a slot still holds after a minute stays until the next epoch, which the log tells.
        """
        epoch, retry_s = self._epoch, _FIRST_RETRY_S
        try:
            async with asyncio.timeout(UNLOAD_TIMEOUT_S):
                while True:
                    try:
                        await unload_adapter(self._stub(), digest)
                        break
                    except AdapterInUse:
                        await asyncio.sleep(retry_s)
                        self._check_epoch(epoch)
                        retry_s = min(2 * retry_s, _MAX_RETRY_S)
        except TimeoutError:
            log.error("a slot holds an adapter that no request holds", extra={"digest": digest.hex()})
        self._check_epoch(epoch)
        self._digests.discard(digest)

    def _stub(self) -> "shard_pb2_grpc.ShardAsyncStub":
        stub = self._client.stub
        if stub is None:
            raise ShardAway("the shards are away")
        return stub

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            raise ShardAway("the stream to the shards was lost")
