"""What the router counts. Plain numbers while serving; prometheus families are made at scrape.

Names and meanings stand in `specs.py`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from textmill_router.metrics import specs
from textmill_router.metrics.histogram import DURATION_BOUNDS_S, Histogram, linear_bounds
from textmill_router.metrics.specs import MetricKind, MetricSpec
from textmill_router.metrics.step_metrics import StepKind, StepMetrics
from textmill_router.request import FinishReason
from textmill_router.scheduler.scheduler import SchedulerStats
from textmill_router.text.generation import GenerationResult

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
QUANTILES = (0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
_CONCAT_REASON = "chunking"


@dataclass(frozen=True, slots=True)
class EngineNumbers:
    """What the engine knows at a scrape. `block_size` in tokens."""

    stats: SchedulerStats
    steps: StepMetrics
    block_size: int
    is_up: bool


@dataclass(frozen=True, slots=True)
class CacheNumbers:
    """What the response cache has done, counted since the start, and how much it holds."""

    num_hits: int
    num_misses: int
    num_bytes: int


class Metrics:
    """One owner for all counters of the HTTP side; the engine's own numbers are asked for at scrape."""

    def __init__(self) -> None:
        self.num_requests = 0  # calls that ask for generation
        self._successes = 0
        self._aborts = 0
        self._failures: Counter[str] = Counter()  # by `err`
        self._finishes: Counter[FinishReason] = Counter()
        self._http: Counter[tuple[str, str, int]] = Counter()  # by route, method, status
        self._prompt_tokens = 0
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
        """Token histograms have buckets up to the limits, which are known once the shard is ready."""
        self._input_length = Histogram(linear_bounds(max_input_tokens))
        self._max_new_tokens = Histogram(linear_bounds(max_total_tokens))
        self._generated_tokens = Histogram(linear_bounds(max_total_tokens))

    def on_validated(self, num_prompt_tokens: int, max_new_tokens: int) -> None:
        """A prompt obeys all rules."""
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
        """A call is complete. Times in seconds, those of `result`; `others` are the call's further sequences."""
        assert self._generated_tokens is not None
        self._successes += 1
        for sequence in (result, *others):
            self._finishes[sequence.finish_reason] += 1
            self._generated_tokens.observe(sequence.num_output_tokens)
        self._request_duration.observe(total_s)
        self._validation_duration.observe(validation_s)
        self._queue_duration.observe(result.queue_s)
        self._inference_duration.observe(result.inference_s)
        if result.num_output_tokens:  # `max_time` may end a call before its first
            self._mean_time_per_token.observe(result.inference_s / result.num_output_tokens)
            self._time_to_first_token.observe(validation_s + result.first_token_s)

    def on_failure(self, err: str) -> None:
        """A call ended without a result; `err` is one of the values in `specs.REQUEST_FAILURE`."""
        self._failures[err] += 1

    def on_abort(self) -> None:
        """The client of an admitted call left."""
        self._aborts += 1

    def on_http(self, route: str, method: str, status: int) -> None:
        """An HTTP call is over; status 499 is a client that left before the answer began."""
        self._http[route, method, status] += 1

    def on_refused_connection(self, status: int) -> None:
        """A connection was refused before there was a call."""
        self._http["other", "other", status] += 1

    def on_cache_hit(self) -> None:
        """A call was answered from the response cache."""
        self._successes += 1

    def expose(self, engine: EngineNumbers | None, cache: CacheNumbers, *, num_in_flight: int) -> bytes:
        """The text of /metrics. `engine` is None before the first epoch."""
        families = [*self._own_families(num_in_flight), *(_engine_families(engine) if engine else ())]
        families.append(_counter(specs.CACHE_HITS, cache.num_hits))
        families.append(_counter(specs.CACHE_MISSES, cache.num_misses))
        families.append(_gauge(specs.CACHE_BYTES, cache.num_bytes))
        families.append(_gauge(specs.SHARD_UP, engine is not None and engine.is_up))
        return write_text([*families, *self._process.collect()])

    def _own_families(self, num_in_flight: int) -> Iterator[Metric]:
        yield _counter(specs.REQUEST_COUNT, self.num_requests)
        yield _counter(specs.REQUEST_SUCCESS, self._successes)
        yield _counters(specs.REQUEST_FAILURE, [((err,), count) for err, count in sorted(self._failures.items())])
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
                yield _histogram(spec, histogram)
        yield _gauge(specs.REQUESTS_IN_FLIGHT, num_in_flight)
        yield _counter(specs.REQUEST_ABORTS, self._aborts)
        yield _counters(specs.REQUEST_FINISH, [((reason.value,), count) for reason, count in self._finishes.items()])
        yield _counter(specs.PROMPT_TOKENS, self._prompt_tokens)
        yield _counters(
            specs.HTTP_REQUESTS,
            [((route, method, str(status)), count) for (route, method, status), count in sorted(self._http.items())],
        )
        build = GaugeMetricFamily(specs.BUILD_INFO.name, specs.BUILD_INFO.text, labels=specs.BUILD_INFO.labels)
        build.add_metric([version("textmill")], 1)
        yield build


def _engine_families(engine: EngineNumbers) -> Iterator[Metric]:
    yield from _stats_families(engine.stats, engine.block_size)
    steps = engine.steps
    yield _summary(specs.SKIPPED_TOKENS, steps.num_outputs_by_skipped)
    yield _histogram(specs.BATCH_NEXT_SIZE, steps.next_size)
    yield _histogram(specs.INTER_TOKEN, steps.inter_token)
    if steps.num_concats:
        yield _counters(specs.BATCH_CONCAT, [((_CONCAT_REASON,), steps.num_concats)])
    yield _counters(specs.BATCH_INFERENCE_COUNT, [((method,), count) for method, count in steps.num_steps.items()])
    yield _counters(
        specs.BATCH_INFERENCE_SUCCESS,
        [
            ((method,), count - steps.num_failed_steps[method])
            for method, count in steps.num_steps.items()
            if count > steps.num_failed_steps[method]
        ],
    )
    yield _counters(
        specs.BATCH_INFERENCE_FAILURE, [((method,), count) for method, count in steps.num_failed_steps.items() if count]
    )
    for spec, histograms in (
        (specs.BATCH_CONCAT_DURATION, steps.concat_s),
        (specs.BATCH_INFERENCE_DURATION, steps.step_s),
        (specs.BATCH_FORWARD_DURATION, steps.forward_s),
        (specs.BATCH_DECODE_DURATION, steps.text_s),
        (specs.BATCH_FILTER_DURATION, steps.planning_s),
    ):
        yield _histograms(spec, histograms)


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
        (specs.KV_USAGE, stats.num_held_blocks / max(1, stats.num_blocks)),
        (specs.SLOTS_FREE, stats.num_free_slots),
        (specs.SLOTS_SIZE, stats.num_slots),
    ):
        yield _gauge(spec, value)
    blocks = GaugeMetricFamily(specs.KV_BLOCKS.name, specs.KV_BLOCKS.text, labels=specs.KV_BLOCKS.labels)
    blocks.add_metric(["free"], stats.num_free_blocks)
    blocks.add_metric(["cached"], stats.num_cached_blocks)
    blocks.add_metric(["held"], stats.num_held_blocks)
    yield blocks
    for spec, total in (
        (specs.PREEMPTIONS, stats.num_preemptions_total),
        (specs.STARVATIONS, stats.num_starvations_total),
        (specs.PREFIX_HIT_TOKENS, stats.num_prefix_hit_tokens_total),
        (specs.PREFIX_LOOKUP_TOKENS, stats.num_prefix_lookup_tokens_total),
        (specs.PROMPT_TOKENS_COMPUTED, stats.num_prompt_tokens_computed_total),
        (specs.OUTPUT_TOKENS, stats.num_output_tokens_total),
        (specs.STEPS, stats.num_steps_total),
        (specs.EPOCHS, stats.num_epochs_total),
    ):
        yield _counter(spec, total)


def write_text(families: Iterable[Metric]) -> bytes:
    """Prometheus text format. HELP and TYPE carry the name of the samples, also for counters."""
    lines = []
    for family in families:
        if not family.samples:
            continue
        # The library calls a counter's samples `<name>_total`; ours are renamed, its own keep it.
        name = family.samples[0].name if family.type == "counter" else family.name
        lines.append(f"# HELP {name} {_escape(family.documentation)}")
        lines.append(f"# TYPE {name} {family.type}")
        for sample in family.samples:
            labels = ",".join(f'{key}="{_escape(value, quote=True)}"' for key, value in sample.labels.items())
            shown = f"{sample.name}{{{labels}}}" if labels else sample.name
            lines.append(f"{shown} {_number(sample.value)}")
    return ("\n".join(lines) + "\n").encode()


def _gauge(spec: MetricSpec, value: float) -> Metric:
    assert spec.kind is MetricKind.GAUGE, spec
    return GaugeMetricFamily(spec.name, spec.text, value=value)


def _counter(spec: MetricSpec, value: float) -> Metric:
    return _counters(spec, [((), value)])


def _counters(spec: MetricSpec, rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    """One sample for each row of label values."""
    assert spec.kind is MetricKind.COUNTER, spec
    family = CounterMetricFamily(spec.name, spec.text)
    for values, value in rows:
        family.add_sample(spec.name, dict(zip(spec.labels, values, strict=True)), value)
    return family


def _histogram(spec: MetricSpec, histogram: Histogram) -> Metric:
    assert spec.kind is MetricKind.HISTOGRAM, spec
    return HistogramMetricFamily(spec.name, spec.text, buckets=histogram.buckets(), sum_value=histogram.sum)


def _histograms(spec: MetricSpec, histograms: dict[StepKind, Histogram]) -> Metric:
    family = HistogramMetricFamily(spec.name, spec.text, labels=spec.labels)
    for method, histogram in histograms.items():
        family.add_metric([method.value], histogram.buckets(), histogram.sum)
    return family


def _summary(spec: MetricSpec, counts: Counter[int]) -> Metric:
    """Exact quantiles of whole numbers that were counted by value; nothing before the first."""
    family = Metric(spec.name, spec.text, spec.kind.value)
    total = sum(counts.values())
    if not total:
        return family
    ordered = sorted(counts.items())
    for quantile in QUANTILES:
        rank, seen, found = quantile * (total - 1), 0, 0
        for value, count in ordered:
            found = value
            seen += count
            if seen > rank:
                break
        family.add_sample(spec.name, {"quantile": f"{quantile:g}"}, found)
    family.add_sample(spec.name + "_sum", {}, sum(value * count for value, count in ordered))
    family.add_sample(spec.name + "_count", {}, total)
    return family


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")


def _escape(text: str, *, quote: bool = False) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quote else escaped
