"""Records the graphs of decode steps with all ranks, and keeps those for which the memory of each rank has room.

The ranks go on together. Behind each stretch of work in which a rank may fail they exchange how it went, and the worst
outcome counts for all. In such a stretch no rank waits for another, so that none waits for a rank that has failed: a
step whose launches exchange tensors is first tried with exchanges at rest (`TensorParallel.at_rest`), and a recording
exchanges nothing, because its launches run at the replay alone.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import torch

from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import is_of_memory
from textmill_shard.model.adapter import NO_ADAPTER
from textmill_shard.model.decode_graphs import DecodeGraphs
from textmill_shard.model.graph_recorder import GraphRecorder
from textmill_shard.model.system_memory import free_device_memory

log = logging.getLogger(__name__)

Check: TypeAlias = Callable[[int, int], str]  # of a bucket, and of the place of an adapter in its rows


class Outcome(IntEnum):
    """How a stretch of work went, the worst first."""

    FAULT = 0
    NO_MEMORY = 1
    DONE = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a stretch of work went on the rank where it went worst. `reason` is a sentence where the work is not done."""

    outcome: Outcome
    reason: str = ""

    @property
    def is_done(self) -> bool:
        return self.outcome is Outcome.DONE


class Together:
    """Lets ranks work side by side, and agree on how the work went. Every rank makes equal calls."""

    def __init__(self, parallel: TensorParallel, device: torch.device) -> None:
        self._parallel = parallel
        self._device = device

    def run(self, work: Callable[[], str]) -> Verdict:
        """Do this rank's part, which returns what is wrong with its result, or "", and return the verdict of all."""
        try:
            reason = work()
            outcome = Outcome.FAULT if reason else Outcome.DONE
        except Exception as error:  # whatever CUDA says of work that no graph can hold
            reason, outcome = f"{type(error).__name__}: {error}", Outcome.FAULT
            if is_of_memory(error):
                outcome = Outcome.NO_MEMORY
        if outcome is Outcome.NO_MEMORY:
            free_device_memory(self._device)  # before the exchange, which needs memory too
        worst = Outcome(self._parallel.min_int(outcome, self._device))
        if worst is Outcome.NO_MEMORY and outcome is Outcome.DONE:
            reason = "memory ran out on another rank"
        elif worst is Outcome.FAULT and outcome is not Outcome.FAULT:
            reason = "another rank has failed"
        return Verdict(worst, reason)

    def rehearse(self, work: Callable[[], None]) -> Verdict:
        """Do this rank's part with exchanges at rest, and return the verdict. A rank alone has nothing to rehearse."""
        if self._parallel.world_size == 1:
            return Verdict(Outcome.DONE)

        def at_rest() -> str:
            with self._parallel.at_rest():
                work()
            return ""

        return self.run(at_rest)


class GraphRecording:
    """Records the steps of all buckets of one set of graphs. Every rank makes equal calls."""

    def __init__(
        self, graphs: DecodeGraphs, recorder: GraphRecorder, together: Together, on_recorded: Callable[[], None]
    ) -> None:
        self._graphs = graphs
        self._recorder = recorder
        self._together = together
        self._on_recorded = on_recorded

    def record(self, adapter: int, check: Check) -> str:
        """Record the steps of rows without adapters, or with `adapter` and others, the largest bucket first.

        Where memory runs out before a step is recorded, the next smaller bucket is tried. Where memory runs out later,
        the recorded buckets are kept, because smaller steps can be padded to them. Returns why there is no graph, or a
        graph of another kind of fault, or "".
        """
        graphs, has_adapters = self._graphs, adapter != NO_ADAPTER
        reason = "no bucket is left"
        for bucket in reversed(graphs.recordable(has_adapters=has_adapters)):
            verdict = self._record_bucket(bucket, adapter, check)
            if verdict.outcome is Outcome.FAULT:
                return verdict.reason
            if verdict.outcome is Outcome.NO_MEMORY:
                graphs.forget(bucket, has_adapters=has_adapters)
                reason = verdict.reason
                if graphs.recorded(has_adapters=has_adapters):
                    break
                continue
            self._on_recorded()
        kept = graphs.recorded(has_adapters=has_adapters)
        if not kept:
            return reason
        _tell_of_room(kept, graphs.recordable(has_adapters=has_adapters), reason)
        return ""

    def _record_bucket(self, bucket: int, adapter: int, check: Check) -> Verdict:
        graphs, together, has_adapters = self._graphs, self._together, adapter != NO_ADAPTER

        def record() -> str:
            graphs.record(self._recorder, bucket, has_adapters=has_adapters)
            return ""

        verdict = together.rehearse(lambda: graphs.rehearse(self._recorder, bucket, has_adapters=has_adapters))
        if verdict.is_done:
            verdict = together.run(record)
        if verdict.is_done:
            verdict = together.run(lambda: check(bucket, adapter))
        return verdict


def _tell_of_room(kept: list[int], wanted: list[int], reason: str) -> None:
    """Warn of decode steps that are slower than they could be, because some buckets have found no memory."""
    if kept[-1] < wanted[-1]:
        log.warning(
            "decode steps of more than %d requests are launched one by one, because memory ran out for larger graphs: "
            "a smaller --memory-fraction or --kv-cache-bytes leaves room for graphs",
            kept[-1],
            extra={"buckets": kept, "reason": reason},
        )
    elif kept[0] > wanted[0]:
        log.warning(
            "decode steps of fewer than %d requests are padded to so many, because memory ran out for smaller graphs: "
            "a smaller --memory-fraction or --kv-cache-bytes leaves room for graphs",
            kept[0],
            extra={"buckets": kept, "reason": reason},
        )
