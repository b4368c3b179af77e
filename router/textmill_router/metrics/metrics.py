"""The numbers that the router counts while it serves, and the metrics that a scrape shows.

The names and meanings of the metrics stand in `specs.py`; `exposition.py` makes families and text at the scrape.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from prometheus_client.core import Metric
from prometheus_client.process_collector import ProcessCollector

from textmill_router.health.states import HealthState
from textmill_router.metrics import specs
from textmill_router.metrics.adapter_metrics import AllAdapters, adapter_families, vllm_lora_family
from textmill_router.metrics.exposition import (
    counter_family,
    gauge_family,
    histogram_family,
    histograms_by_kind,
    labelled_counters,
    labelled_gauges,
    summary_family,
    write_text,
)
from textmill_router.metrics.histogram import DURATION_BOUNDS_S, Histogram, linear_bounds
from textmill_router.metrics.media_metrics import MediaCounts, media_families
from textmill_router.metrics.row_metrics import RowMetrics
from textmill_router.metrics.step_metrics import StepMetrics
from textmill_router.metrics.vllm_names import vllm_families
from textmill_router.request import FinishReason
from textmill_router.scheduler.scheduler import SchedulerStats
from textmill_router.text.events import GenerationResult

_CONCAT_REASON = "chunking"
_RESTART_REASONS = ("exited", "hung", "killed")


@dataclass(frozen=True, slots=True)
class EngineNumbers:
    """The engine's numbers at a scrape. `block_size` is in tokens."""

    stats: SchedulerStats  # of all replicas together
    steps: StepMetrics
    block_size: int
    is_up: bool
    replicas: Sequence["ReplicaNumbers"] = ()  # in the order of their numbers
    num_moved_requests: int = 0
    num_computed_by_caller: Mapping[str, int] = field(default_factory=dict)
    adapters: AllAdapters | None = None
    media: Sequence[MediaCounts] | None = None  # of each replica, where the model takes images


@dataclass(frozen=True, slots=True)
class ReplicaNumbers:
    """The numbers of one replica. `stats` is None before the replica's first epoch; `phase` is that of its engine."""

    stats: SchedulerStats | None
    phase: str

    @property
    def is_up(self) -> bool:
        """Whether the replica serves."""
        return self.phase == "ready"


@dataclass(frozen=True, slots=True)
class CacheNumbers:
    """Hits and misses of the response cache since the start, and the bytes that the cache holds."""

    num_hits: int
    num_misses: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class RowNumbers:
    """The numbers of an engine of rows at a scrape."""

    metrics: RowMetrics
    num_waiting: int
    num_waiting_tokens: int


class Metrics:
    """The owner of all counters of the HTTP side. The scrape brings the engine's numbers, which the engine owns.

    With a `vllm_model_name`, a scrape shows vLLM's names of metrics too, whose label `model_name` has that value.
    """

    def __init__(self, *, vllm_model_name: str | None = None) -> None:
        self._vllm_model_name = vllm_model_name
        self.num_requests = 0  # calls that ask for generation
        self._successes = 0
        self._aborts = 0
        self._failures: Counter[str] = Counter()  # by `err`
        self._finishes: Counter[FinishReason] = Counter()
        self._http: Counter[tuple[str, str, int]] = Counter()  # by route, method, status
        self._prompt_tokens = 0
        self._task_calls: Counter[str] = Counter()  # by task
        self._task_tokens: Counter[str] = Counter()
        # By reason, and 0 at first, because Prometheus' `increase` misses the first event of a series that begins at 1.
        self._shard_restarts = Counter(dict.fromkeys(_RESTART_REASONS, 0))
        self._request_duration = Histogram(DURATION_BOUNDS_S)
        self._validation_duration = Histogram(DURATION_BOUNDS_S)
        self._queue_duration = Histogram(DURATION_BOUNDS_S)
        self._inference_duration = Histogram(DURATION_BOUNDS_S)
        self._mean_time_per_token = Histogram(DURATION_BOUNDS_S)
        self._time_to_first_token = Histogram(DURATION_BOUNDS_S)
        self._input_length: Histogram | None = None
        self._max_new_tokens: Histogram | None = None
        self._generated_tokens: Histogram | None = None
        self._process = ProcessCollector(registry=None)

    def set_limits(self, *, max_input_tokens: int, max_total_tokens: int) -> None:
        """Make the histograms of tokens, once the shard is ready, because their buckets go up to these limits."""
        self._input_length = Histogram(linear_bounds(max_input_tokens))
        self._max_new_tokens = Histogram(linear_bounds(max_total_tokens))
        self._generated_tokens = Histogram(linear_bounds(max_total_tokens))

    def on_validated(self, num_prompt_tokens: int, max_new_tokens: int) -> None:
        """Count a prompt that obeys all rules."""
        assert self._input_length is not None
        assert self._max_new_tokens is not None
        self._input_length.observe(num_prompt_tokens)
        self._max_new_tokens.observe(max_new_tokens)
        self._prompt_tokens += num_prompt_tokens

    def on_success(
        self,
        result: GenerationResult,
        *,
        validation_s: float,
        total_s: float,
        others: Sequence[GenerationResult] = (),
    ) -> None:
        """Count a call that is complete, with the times of `result`, in seconds.

        `others` are the further sequences of the call.
        """
        assert self._generated_tokens is not None
        self._successes += 1
        for sequence in (result, *others):
            self._finishes[sequence.finish_reason] += 1
            self._generated_tokens.observe(sequence.num_output_tokens)
        self._request_duration.observe(total_s)
        self._validation_duration.observe(validation_s)
        self._queue_duration.observe(result.queue_s)
        self._inference_duration.observe(result.inference_s)
        if result.num_output_tokens:  # `max_time` may end a call before the first output token
            self._mean_time_per_token.observe(result.inference_s / result.num_output_tokens)
            self._time_to_first_token.observe(validation_s + result.first_token_s)

    def on_task(self, task: str, *, total_s: float, queue_s: float, num_tokens: int) -> None:
        """Count a call of a task without generation that is complete."""
        self._successes += 1
        self._task_calls[task] += 1
        self._task_tokens[task] += num_tokens
        self._request_duration.observe(total_s)
        self._queue_duration.observe(queue_s)

    def on_failure(self, err: str) -> None:
        """Count a call that ended without a result. The text of `specs.REQUEST_FAILURE` lists the values of `err`."""
        self._failures[err] += 1

    def on_abort(self) -> None:
        """Count an admitted call whose client left."""
        self._aborts += 1

    def on_http(self, route: str, method: str, status: int) -> None:
        """Count an HTTP call that is over. Status 499 means that the client left before the answer began."""
        self._http[route, method, status] += 1

    def on_refused_connection(self, status: int) -> None:
        """Count a connection that was refused before a call was read from it."""
        self._http["other", "other", status] += 1

    def on_shard_restart(self, reason: str) -> None:
        """Count a group of shards that the launcher starts again. The text of `specs.SHARD_RESTARTS` lists reasons."""
        self._shard_restarts[reason] += 1

    def on_cache_hit(self) -> None:
        """Count a call that was answered from the response cache."""
        self._successes += 1

    def expose(
        self,
        engine: EngineNumbers | None,
        cache: CacheNumbers,
        *,
        num_in_flight: int,
        state: HealthState,
        rows: RowNumbers | None = None,
        is_up: bool | None = None,
    ) -> bytes:
        """Return the body of /metrics. `engine` is None before the first epoch, and of a model without generation.

        `rows` are the numbers of a model without generation, of which `is_up` says whether a shard serves.
        """
        families = [*self._own_families(num_in_flight), *(_engine_families(engine) if engine else ())]
        if rows is not None:
            families += self._row_families(rows)
        if engine is not None and self._vllm_model_name is not None:
            families += vllm_families(engine.stats, engine.block_size, self._vllm_model_name)
            if engine.adapters is not None:
                families.append(vllm_lora_family(engine.adapters))
        families.append(counter_family(specs.CACHE_HITS, cache.num_hits))
        families.append(counter_family(specs.CACHE_MISSES, cache.num_misses))
        families.append(gauge_family(specs.CACHE_BYTES, cache.num_bytes))
        families.append(gauge_family(specs.SHARD_UP, (engine is not None and engine.is_up) if is_up is None else is_up))
        families.append(labelled_gauges(specs.HEALTH_STATE, [((one.value,), one is state) for one in HealthState]))
        return write_text([*families, *self._process.collect()])

    def _row_families(self, rows: RowNumbers) -> Iterator[Metric]:
        counted = rows.metrics
        yield labelled_counters(specs.TASK_CALLS, [((task,), count) for task, count in self._task_calls.items()])
        yield labelled_counters(specs.TASK_TOKENS, [((task,), count) for task, count in self._task_tokens.items()])
        yield counter_family(specs.ROWS, counted.num_rows)
        yield counter_family(specs.ROW_TOKENS, counted.num_tokens)
        yield counter_family(specs.REPEATED_ROWS, counted.num_repeated_rows)
        yield gauge_family(specs.ROWS_WAITING, rows.num_waiting)
        yield gauge_family(specs.ROW_TOKENS_WAITING, rows.num_waiting_tokens)
        yield histogram_family(specs.ROW_BATCH_SIZE, counted.batch_size)
        yield histogram_family(specs.ROW_BATCH_DURATION, counted.batch_duration)
        yield histogram_family(specs.RECOVERY, counted.recovery)

    def _own_families(self, num_in_flight: int) -> Iterator[Metric]:
        yield counter_family(specs.REQUEST_COUNT, self.num_requests)
        yield counter_family(specs.REQUEST_SUCCESS, self._successes)
        yield labelled_counters(
            specs.REQUEST_FAILURE, [((err,), count) for err, count in sorted(self._failures.items())]
        )
        for spec, histogram in (
            (specs.REQUEST_DURATION, self._request_duration),
            (specs.VALIDATION_DURATION, self._validation_duration),
            (specs.QUEUE_DURATION, self._queue_duration),
            (specs.INFERENCE_DURATION, self._inference_duration),
            (specs.MEAN_TIME_PER_TOKEN, self._mean_time_per_token),
            (specs.GENERATED_TOKENS, self._generated_tokens),
            (specs.INPUT_LENGTH, self._input_length),
            (specs.MAX_NEW_TOKENS, self._max_new_tokens),
            (specs.TIME_TO_FIRST_TOKEN, self._time_to_first_token),
        ):
            if histogram is not None:
                yield histogram_family(spec, histogram)
        yield gauge_family(specs.REQUESTS_IN_FLIGHT, num_in_flight)
        yield counter_family(specs.REQUEST_ABORTS, self._aborts)
        yield labelled_counters(
            specs.REQUEST_FINISH, [((reason.value,), count) for reason, count in self._finishes.items()]
        )
        yield counter_family(specs.PROMPT_TOKENS, self._prompt_tokens)
        yield labelled_counters(
            specs.SHARD_RESTARTS, [((reason,), count) for reason, count in sorted(self._shard_restarts.items())]
        )
        yield labelled_counters(
            specs.HTTP_REQUESTS,
            [((route, method, str(status)), count) for (route, method, status), count in sorted(self._http.items())],
        )
        yield labelled_gauges(specs.BUILD_INFO, [((version("textmill"),), 1)])


def _engine_families(engine: EngineNumbers) -> Iterator[Metric]:
    yield from _stats_families(engine.stats, engine.block_size)
    yield from _replica_families(engine.replicas)
    yield counter_family(specs.MOVED_REQUESTS, engine.num_moved_requests)
    by_caller = sorted(engine.num_computed_by_caller.items())
    yield labelled_counters(specs.CALLER_TOKENS, [((caller,), count) for caller, count in by_caller])
    if engine.adapters is not None:
        yield from adapter_families(engine.adapters)
    if engine.media is not None:
        yield from media_families(engine.media)
    steps = engine.steps
    yield summary_family(specs.SKIPPED_TOKENS, steps.num_outputs_by_skipped)
    yield histogram_family(specs.BATCH_NEXT_SIZE, steps.next_size)
    yield histogram_family(specs.INTER_TOKEN, steps.inter_token)
    yield histogram_family(specs.RECOVERY, steps.recovery)
    yield counter_family(specs.MEMORY_FAULTS, steps.num_memory_faults)
    if steps.num_concats:
        yield labelled_counters(specs.BATCH_CONCAT, [((_CONCAT_REASON,), steps.num_concats)])
    yield labelled_counters(
        specs.BATCH_INFERENCE_COUNT, [((method,), count) for method, count in steps.num_steps.items()]
    )
    yield labelled_counters(
        specs.BATCH_INFERENCE_SUCCESS,
        [
            ((method,), count - steps.num_failed_steps[method])
            for method, count in steps.num_steps.items()
            if count > steps.num_failed_steps[method]
        ],
    )
    yield labelled_counters(
        specs.BATCH_INFERENCE_FAILURE, [((method,), count) for method, count in steps.num_failed_steps.items() if count]
    )
    for spec, histograms in (
        (specs.BATCH_CONCAT_DURATION, steps.concat_s),
        (specs.BATCH_INFERENCE_DURATION, steps.step_s),
        (specs.BATCH_FORWARD_DURATION, steps.forward_s),
        (specs.BATCH_DECODE_DURATION, steps.text_s),
        (specs.BATCH_FILTER_DURATION, steps.planning_s),
    ):
        yield histograms_by_kind(spec, histograms)


def _stats_families(stats: SchedulerStats, block_size: int) -> Iterator[Metric]:
    for spec, value in (
        (specs.QUEUE_SIZE, stats.num_waiting),
        (specs.BATCH_CURRENT_SIZE, stats.num_running),
        (specs.BATCH_CURRENT_MAX_TOKENS, stats.num_held_blocks * block_size),
        (specs.BATCH_MAX_TOTAL_TOKENS, stats.num_blocks * block_size),
        (specs.REQUESTS_RUNNING, stats.num_running),
        (specs.REQUESTS_WAITING, stats.num_waiting),
        (specs.WAITING_TOKENS, stats.num_waiting_tokens),
        (specs.KV_BLOCKS_SIZE, stats.num_blocks),
        (specs.KV_BLOCK_SIZE, block_size),
        (specs.KV_USAGE, stats.num_held_blocks / max(1, stats.num_blocks)),
        (specs.SLOTS_FREE, stats.num_free_slots),
        (specs.SLOTS_SIZE, stats.num_slots),
    ):
        yield gauge_family(spec, value)
    yield labelled_gauges(
        specs.KV_BLOCKS,
        [
            (("free",), stats.num_free_blocks),
            (("cached",), stats.num_cached_blocks),
            (("held",), stats.num_held_blocks),
        ],
    )
    for spec, total in (
        (specs.PREEMPTIONS, stats.num_preemptions_total),
        (specs.READMISSIONS, stats.num_readmissions_total),
        (specs.RECOMPUTED_TOKENS, stats.num_recomputed_tokens_total),
        (specs.STARVATIONS, stats.num_starvations_total),
        (specs.PREFIX_HIT_TOKENS, stats.num_prefix_hit_tokens_total),
        (specs.PREFIX_LOOKUP_TOKENS, stats.num_prefix_lookup_tokens_total),
        (specs.PROMPT_TOKENS_COMPUTED, stats.num_prompt_tokens_computed_total),
        (specs.OUTPUT_TOKENS, stats.num_output_tokens_total),
        (specs.STEPS, stats.num_steps_total),
        (specs.EPOCHS, stats.num_epochs_total),
    ):
        yield counter_family(spec, total)


def _replica_families(replicas: Sequence[ReplicaNumbers]) -> Iterator[Metric]:
    names = [(str(number),) for number in range(len(replicas))]
    yield labelled_gauges(
        specs.REPLICA_UP, [(name, replica.is_up) for name, replica in zip(names, replicas, strict=True)]
    )
    known = [(name, replica.stats) for name, replica in zip(names, replicas, strict=True) if replica.stats is not None]
    yield labelled_gauges(specs.REPLICA_RUNNING, [(name, stats.num_running) for name, stats in known])
    yield labelled_gauges(specs.REPLICA_WAITING, [(name, stats.num_waiting) for name, stats in known])
    yield labelled_gauges(
        specs.REPLICA_KV_USAGE, [(name, stats.num_held_blocks / max(1, stats.num_blocks)) for name, stats in known]
    )
    yield labelled_counters(
        specs.REPLICA_OUTPUT_TOKENS, [(name, stats.num_output_tokens_total) for name, stats in known]
    )
    yield labelled_counters(
        specs.REPLICA_HIT_TOKENS, [(name, stats.num_prefix_hit_tokens_total) for name, stats in known]
    )
    yield labelled_counters(specs.REPLICA_EPOCHS, [(name, stats.num_epochs_total) for name, stats in known])
