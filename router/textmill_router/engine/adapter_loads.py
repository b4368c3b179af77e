"""Loads and unloads adapters in all replicas: the I/O around the registry of adapters.

The registry decides, and this file asks the shards. Work on one name is serial. Loads and unloads of weights are serial
too, because the digest of a load is known only afterwards, and an unload under way could take those weights away.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from textmill_router.adapters.registry import AdapterFacts, AdapterRegistry, AdapterSource
from textmill_router.engine.adapter_calls import AdapterRefused, ShardAway
from textmill_router.engine.engine_loop import EngineLoop
from textmill_router.engine.replica_set import ReplicaSet
from textmill_router.engine.status import EnginePhase
from textmill_router.metrics.histogram import DURATION_BOUNDS_S, Histogram
from textmill_router.request import Adapter

log = logging.getLogger(__name__)

LOSS_TIMEOUT_S = 15.0  # until a stream whose shard does not answer counts as lost


class AdapterLoads:
    """The loads and unloads of one engine. The owner calls `close` before the engine stops."""

    def __init__(
        self, registry: AdapterRegistry, engine: ReplicaSet, *, on_change: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """`on_change` is awaited whenever a name has got weights, or has gone."""
        self._registry = registry
        self._engine = engine
        self._on_change = on_change
        self._shards = asyncio.Lock()  # held while shards load or unload
        self._changed = asyncio.Event()
        self._unloading: asyncio.Task[None] | None = None
        self.load_s = Histogram(DURATION_BOUNDS_S)  # of loads that succeeded

    async def load(self, name: str, source: AdapterSource, *, in_place: bool = False) -> AdapterFacts:
        """Load the adapter of a folder in every replica that serves, and let the name stand for it.

        A failure leaves everything as it was. Raises NameTaken, AdapterRefused, and ShardAway when no replica serves.
        """
        await self._until(lambda: not self._registry.is_in_work(name))
        self._registry.begin_load(name, source, in_place=in_place)
        began_s = time.monotonic()
        found: list[AdapterFacts] = []  # of the first shard that has read the files
        try:
            async with self._shards:
                facts = await self._load_everywhere(source, found)
                self._registry.finish_load(name, source, facts)
        except BaseException:
            self._registry.fail_load(name, found[0] if found else None)
            raise
        finally:
            self._changed.set()
            self._unload_soon()
        self.load_s.observe(time.monotonic() - began_s)
        log.info(
            "adapter loaded",
            extra={
                "adapter": name,
                "digest": facts.digest.hex(),
                "rank": facts.max_rank,
                "num_bytes": facts.num_bytes,
                "num_modules": facts.num_modules,
                "targets": facts.target_names,
            },
        )
        await self._note_change()
        return facts

    async def load_registered(self) -> None:
        """Load the adapters that are registered at the start. Waits for shards that are away.

        Raises AdapterRefused, but not for weights that were loaded before: their name goes, with a log line.
        """
        for listed, source in self._registry.registered():
            while True:
                try:
                    await self.load(listed, source)
                    break
                except ShardAway as error:
                    log.warning("adapter not loaded yet", extra={"adapter": listed, "reason": str(error)})
                    self._registry.register(listed, source)
                    status = await self._engine.wait_for_phase(EnginePhase.READY, EnginePhase.STOPPED)
                    if status.phase is EnginePhase.STOPPED:
                        raise
                except AdapterRefused as error:
                    if source.expected_digest:
                        log.warning("adapter withdrawn", extra={"adapter": listed, "reason": str(error)})
                        break
                    raise AdapterRefused(f"the adapter {listed!r} cannot be loaded: {error}") from error

    async def unload(self, name: str, *, waits: bool = False) -> None:
        """Take a name away. Calls that run keep the weights, which leave the shards after the last of these calls.

        `waits` waits until the weights have left, or have a name again. Raises UnknownAdapter.
        """
        await self._until(lambda: not self._registry.is_in_work(name))
        digest = self._registry.remove(name)
        log.info("adapter unloaded", extra={"adapter": name, "digest": digest.hex()})
        self._changed.set()
        self._unload_soon()
        await self._note_change()
        if waits:
            await self._until(lambda: not self._registry.is_leaving(digest))

    def release(self, adapter: Adapter) -> None:
        """Give back the adapter of a call that has ended."""
        self._registry.release(adapter)
        self._unload_soon()

    async def close(self) -> None:
        """End the unload that is under way."""
        if self._unloading is not None:
            self._unloading.cancel()
            await asyncio.gather(self._unloading, return_exceptions=True)

    async def _load_everywhere(self, source: AdapterSource, found: list[AdapterFacts]) -> AdapterFacts:
        """Load in one replica after the other. When this returns, every replica that serves has the weights.

        The first facts go to `found` too, because the registry must hear of them when a later replica refuses.
        """
        while True:
            replica = next((one for one in self._engine.replicas if self._lacks(one, found)), None)
            if replica is None:
                if not found:
                    raise ShardAway("no shard serves now")
                return found[0]
            try:
                facts = await replica.adapters.load(source.folder, found[0].digest if found else source.expected_digest)
            except ShardAway as error:
                await self._wait_for_loss(replica, error)
                continue
            if not found:
                self._registry.note_loaded(facts, source.folder)
                found.append(facts)

    async def _note_change(self) -> None:
        if self._on_change is not None:
            await self._on_change()

    def _lacks(self, replica: EngineLoop, found: list[AdapterFacts]) -> bool:
        is_ready = replica.status.phase is EnginePhase.READY
        return is_ready and not (found and replica.adapters.holds(found[0].digest))

    async def _wait_for_loss(self, replica: EngineLoop, error: ShardAway) -> None:
        """Wait until a replica whose shard does not answer counts as lost. Raises ShardAway if it never does."""
        others = [phase for phase in EnginePhase if phase is not EnginePhase.READY]
        try:
            async with asyncio.timeout(LOSS_TIMEOUT_S):
                await replica.wait_for_phase(*others)
        except TimeoutError:
            raise error from None

    def _unload_soon(self) -> None:
        if self._registry.next_unload() is not None and (self._unloading is None or self._unloading.done()):
            self._unloading = asyncio.create_task(self._unload_idle())

    async def _unload_idle(self) -> None:
        """Take weights that nobody uses from the shards, one after the other."""
        while True:
            async with self._shards:
                digest = self._registry.next_unload()
                if digest is None:
                    return
                for replica in self._engine.replicas:
                    if replica.adapters.holds(digest):
                        with suppress(ShardAway):  # a new epoch unloads what nobody wants
                            await replica.adapters.unload(digest)
                self._registry.finish_unload(digest)
            self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()
