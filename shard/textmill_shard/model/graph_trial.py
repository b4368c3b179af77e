"""Records the graphs of two decode steps before there is a pool of keys and values, to learn what graphs keep."""

import logging
from dataclasses import dataclass

from textmill_shard.model.decode_graphs import GraphSizes
from textmill_shard.model.graph_recorder import GraphRecorder
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.system_memory import taken_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GraphTrial:
    """The graphs that will be recorded, and the recorder that will record them."""

    recorder: GraphRecorder
    num_rows: int  # of the largest
    num_graphs: int


def graph_bytes(runner: ModelRunner, trial: GraphTrial, *, num_slots: int) -> int:
    """Return the bytes that all graphs keep, as the device tells; 0 where a step cannot be recorded.

    The largest graph brings the memory in which the others compute too, and the workspaces of libraries. Each other
    one is taken to keep as much as a graph of half the rows. The present pool has the scratch block alone. Ranks call
    this with exchanges at rest.
    """
    smaller = max(1, trial.num_rows // 2)
    sizes = runner.graph_sizes((smaller, trial.num_rows), num_slots=num_slots)
    before = taken_bytes(runner.device)
    try:
        taken = _record(runner, trial.recorder, sizes)
    except Exception as error:  # whatever CUDA says of work that no graph can hold; told when graphs are recorded
        log.debug("no graph is measured", exc_info=error)
        return 0
    first, *others = (after - earlier for earlier, after in zip((before, *taken), taken, strict=False))
    return max(0, first) + max(0, *others, 0) * (trial.num_graphs - 1)


def _record(runner: ModelRunner, recorder: GraphRecorder, sizes: GraphSizes) -> list[int]:
    """Record each bucket, the largest first, and return the bytes that are taken behind each."""
    graphs = runner.make_graphs(sizes)
    taken = []
    for bucket in reversed(graphs.buckets):
        graphs.record(recorder, bucket)
        taken.append(taken_bytes(runner.device))
    return taken
