"""How steps run on a GPU, as the flags ask: whether they overlap, and which decode steps become graphs."""

import logging
from collections.abc import Callable

from textmill_shard.model.decode_graphs import default_buckets
from textmill_shard.model.graph_recorder import GraphRecorder
from textmill_shard.model.graph_trial import GraphTrial
from textmill_shard.model.runner import ModelRunner
from textmill_shard.settings import ServeSettings

log = logging.getLogger(__name__)


def steps_overlap(settings: ServeSettings, runner: ModelRunner) -> bool:
    """Whether a step is launched before the tokens of the step before are on the host. A CPU never overlaps."""
    return runner.device.type == "cuda" and not settings.no_overlap


def graph_buckets(settings: ServeSettings, runner: ModelRunner, max_rows: int) -> tuple[int, ...]:
    """Return the numbers of rows, at most `max_rows`, whose decode steps become graphs.

    There are none where the flags switch graphs off, and where the launches of a step do not follow from its rows.
    """
    if not (_wants_graphs(settings, runner) and runner.has_fixed_launches):
        return ()
    if settings.cuda_graphs is None:
        return default_buckets(max_rows)
    return tuple(sorted({min(size, max_rows) for size in settings.cuda_graphs}))


def graph_trial(settings: ServeSettings, runner: ModelRunner, recorder: GraphRecorder) -> GraphTrial | None:
    """Return which graphs will be recorded, so that their memory can be measured before; None where there are none."""
    buckets = graph_buckets(settings, runner, settings.num_slots)
    if not buckets:
        return None
    num_kinds = 1 if settings.lora_memory_bytes == 0 else 2  # without adapters, and with them
    return GraphTrial(recorder, num_rows=max(buckets), num_graphs=num_kinds * len(buckets))


def record_graphs(
    settings: ServeSettings,
    runner: ModelRunner,
    recorder: GraphRecorder,
    on_progress: Callable[[float], None],
    *,
    num_blocks: int,
    has_adapters: bool,
) -> None:
    """Record the decode steps over the present pool, or warn why there are no graphs although the flags want them."""
    # A request has at least one block, so that a step has no more rows than there are blocks.
    buckets = graph_buckets(settings, runner, min(settings.num_slots, num_blocks))
    if buckets:
        runner.record_graphs(
            recorder,
            buckets,
            on_progress,
            num_slots=settings.num_slots,
            adapter_rank=settings.max_lora_rank if has_adapters else 0,
        )
    elif _wants_graphs(settings, runner):
        log.warning(
            "decode steps are launched one by one, because what this model or its attention launches does not follow "
            "from the number of rows alone: more time of the host",
            extra={"layout": runner.facts.layout},
        )


def _wants_graphs(settings: ServeSettings, runner: ModelRunner) -> bool:
    return runner.device.type == "cuda" and not settings.no_graphs and settings.cuda_graphs != ()
