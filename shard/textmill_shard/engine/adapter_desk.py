"""Loads and unloads adapters on rank 0, between two steps, and writes down what the other ranks do about adapters."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from textmill_shard.engine.adapter_reader import AdapterReader, ReadOutcome
from textmill_shard.engine.rank_channel import AdapterOrder, OrderKind
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.model.adapter import AdapterRefused, AdapterTooLarge

log = logging.getLogger(__name__)


class AdapterHeld(Exception):
    """A slot has the adapter."""


class UnknownAdapter(Exception):
    """No adapter of this digest is loaded."""


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter that every rank has."""

    digest: bytes
    max_rank: int
    num_modules: int
    target_names: tuple[str, ...]
    bytes_by_rank: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadWanted:
    """A call that waits for an adapter. The future gets AdapterRefused where the adapter cannot be loaded."""

    folder: str
    expected_digest: bytes  # empty: any
    answer: Future[LoadedAdapter] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class UnloadWanted:
    """A call that waits until an adapter is freed. The future gets AdapterHeld or UnknownAdapter."""

    digest: bytes
    answer: Future[None] = field(default_factory=Future)


class AdapterDesk:
    """Owner of the list of loaded adapters. Only the thread of the step loop calls the desk."""

    def __init__(self, executor: StepExecutor, reader: AdapterReader, *, max_bytes: int) -> None:
        """`max_bytes` is the memory that each rank has set aside."""
        self._executor = executor
        self._reader = reader
        self._max_bytes = max_bytes
        self._loaded: dict[bytes, LoadedAdapter] = {}
        self._waiting: deque[LoadWanted] = deque()  # the first is being read
        self._orders: list[AdapterOrder] = []

    def load(self, wanted: LoadWanted, on_read: Callable[[Sequence[ReadOutcome]], None]) -> None:
        """Read a folder when the reads before are done. Another thread calls `on_read`, which leads to `settle`."""
        self._waiting.append(wanted)
        if len(self._waiting) == 1:
            self._begin(on_read)

    def settle(self, outcomes: Sequence[ReadOutcome], on_read: Callable[[Sequence[ReadOutcome]], None]) -> None:
        """Put what every rank has read to use, or refuse it, and begin the next read."""
        wanted = self._waiting.popleft()
        try:
            loaded = self._accept(wanted, outcomes)
        except AdapterRefused as refused:
            self._order(OrderKind.DISCARD)
            self._reader.discard()
            log.warning("adapter refused", extra={"folder": wanted.folder, "reason": str(refused)})
            _answer(wanted.answer, error=refused)
        else:
            _answer(wanted.answer, loaded)
        if self._waiting:
            self._begin(on_read)

    def unload(self, wanted: UnloadWanted) -> None:
        """Free an adapter that no slot has."""
        if wanted.digest not in self._loaded:
            _answer(wanted.answer, error=UnknownAdapter(f"no adapter {wanted.digest.hex()} is loaded"))
        elif self._executor.holds_adapter(wanted.digest):
            _answer(wanted.answer, error=AdapterHeld(f"a request has the adapter {wanted.digest.hex()}"))
        else:
            self._executor.remove_adapter(wanted.digest)
            del self._loaded[wanted.digest]
            self._orders.append(AdapterOrder(OrderKind.REMOVE, digest=wanted.digest))
            log.info("adapter unloaded", extra={"digest": wanted.digest.hex()})
            _answer(wanted.answer, None)

    def take_orders(self) -> tuple[AdapterOrder, ...]:
        """Return what the other ranks have to do since the last call."""
        if not self._orders:
            return ()
        orders, self._orders = tuple(self._orders), []
        return orders

    def close(self) -> None:
        """Cancel the calls that wait."""
        while self._waiting:
            self._waiting.popleft().answer.cancel()

    def _begin(self, on_read: Callable[[Sequence[ReadOutcome]], None]) -> None:
        folder = self._waiting[0].folder
        self._orders.append(AdapterOrder(OrderKind.READ, folder=folder))
        self._reader.begin(folder, on_read)

    def _accept(self, wanted: LoadWanted, outcomes: Sequence[ReadOutcome]) -> LoadedAdapter:
        """Raises AdapterRefused."""
        for outcome in outcomes:
            if outcome.error:
                raise (AdapterTooLarge if outcome.is_too_large else AdapterRefused)(outcome.error)
        digests = {outcome.digest for outcome in outcomes}
        if len(digests) > 1:
            raise AdapterRefused(f"{wanted.folder} changed while the ranks read it: load it again")
        [digest] = digests
        if wanted.expected_digest not in (b"", digest):
            raise AdapterRefused(
                f"{wanted.folder} holds another adapter than before: its digest is {digest.hex()}, and "
                f"{wanted.expected_digest.hex()} was expected"
            )
        if digest in self._loaded:
            self._order(OrderKind.DISCARD)
            self._reader.discard()
            return self._loaded[digest]
        for rank, outcome in enumerate(outcomes):
            free = self._max_bytes - sum(loaded.bytes_by_rank[rank] for loaded in self._loaded.values())
            if outcome.num_bytes > free:
                raise AdapterTooLarge(
                    f"the adapter takes {outcome.num_bytes} bytes, and {free} of the {self._max_bytes} bytes that "
                    "--lora-memory-bytes sets aside are free: unload another adapter, or set aside more"
                )
        loaded = LoadedAdapter(
            digest=digest,
            max_rank=outcomes[0].max_rank,
            num_modules=outcomes[0].num_modules,
            target_names=outcomes[0].target_names,
            bytes_by_rank=tuple(outcome.num_bytes for outcome in outcomes),
        )
        self._order(OrderKind.PUT)
        self._executor.put_adapter(self._reader.take())
        self._loaded[digest] = loaded
        log.info(
            "adapter loaded",
            extra={
                "folder": wanted.folder,
                "digest": digest.hex(),
                "rank": loaded.max_rank,
                "num_modules": loaded.num_modules,
                "num_bytes": max(loaded.bytes_by_rank),
            },
        )
        return loaded

    def _order(self, kind: OrderKind) -> None:
        self._orders.append(AdapterOrder(kind))


def _answer(future: Future, value: object = None, *, error: Exception | None = None) -> None:  # type: ignore[type-arg]
    """Answer a call unless the call was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
