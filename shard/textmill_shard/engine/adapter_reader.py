"""Reads adapters on every rank at a time, in a thread beside the step loop, and learns how it went on each rank."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from textmill_shard.device import claim_device
from textmill_shard.engine.memory_faults import is_out_of_memory
from textmill_shard.model.adapter import AdapterRefused, AdapterTooLarge, PreparedAdapter

log = logging.getLogger(__name__)

READ_TIMEOUT_S = 600.0  # until every rank has read


@dataclass(frozen=True, slots=True)
class ReadOutcome:
    """How a read went on one rank. Without an error there is a digest."""

    digest: bytes = b""
    max_rank: int = 0
    num_modules: int = 0
    target_names: tuple[str, ...] = ()
    num_bytes: int = 0
    error: str = ""
    is_too_large: bool = False


class RankGroup(Protocol):
    """How the reading threads of all ranks meet."""

    def gather(self, outcome: ReadOutcome) -> Sequence[ReadOutcome]:
        """Return the outcomes of all ranks in their order, once each rank has brought its own."""
        ...


class SoloGroup:
    """The group of a rank without followers."""

    def gather(self, outcome: ReadOutcome) -> Sequence[ReadOutcome]:
        return [outcome]


class GlooGroup:
    """A process group of CPUs for the reading threads alone, so that their calls never mix with those of a step."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=READ_TIMEOUT_S))

    def gather(self, outcome: ReadOutcome) -> Sequence[ReadOutcome]:
        outcomes: list[Any] = [None] * self._world_size
        dist.all_gather_object(outcomes, outcome, group=self._group)
        return outcomes


class AdapterReader:
    """Reads one adapter at a time. The step loop calls all methods; `take` or `discard` follows each `begin`."""

    def __init__(self, read: Callable[[Path], PreparedAdapter], group: RankGroup, *, device: str = "cpu") -> None:
        """`read` raises AdapterRefused for a folder that holds no adapter of the model.

        `read` runs in a thread whose current device is `device`, because kernels are compiled and launched for that.
        """
        self._read = read
        self._group = group
        self._device = device
        self._ready: PreparedAdapter | None = None

    def begin(self, folder: str, on_done: Callable[[Sequence[ReadOutcome]], None]) -> None:
        """Begin to read. `on_done` is called in the thread of the read, when every rank is done."""
        threading.Thread(target=self._run, args=(folder, on_done), name="adapter-reader", daemon=True).start()

    def take(self) -> PreparedAdapter:
        """Return what was read last, after `on_done`."""
        ready, self._ready = self._ready, None
        assert ready is not None, "nothing was read"
        return ready

    def discard(self) -> None:
        """Forget what was read last, after `on_done`."""
        self._ready = None

    def _run(self, folder: str, on_done: Callable[[Sequence[ReadOutcome]], None]) -> None:
        on_done(self._group.gather(self._outcome(folder)))

    def _outcome(self, folder: str) -> ReadOutcome:
        try:
            claim_device(self._device)
            ready = self._ready = self._read(Path(folder))
        except AdapterRefused as refused:
            return ReadOutcome(error=str(refused), is_too_large=isinstance(refused, AdapterTooLarge))
        except Exception as error:  # a folder must never end the service
            log.warning("an adapter cannot be read", exc_info=error, extra={"folder": folder})
            text = f"the adapter cannot be read ({type(error).__name__}: {error})"
            return ReadOutcome(error=text, is_too_large=is_out_of_memory(error))
        return ReadOutcome(
            digest=ready.digest,
            max_rank=ready.max_rank,
            num_modules=ready.num_modules,
            target_names=ready.target_names,
            num_bytes=ready.num_bytes,
        )
