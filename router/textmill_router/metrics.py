"""What the router counts. Plain numbers while serving; prometheus families are made at scrape.

TGI's names stay (`tgi_...`), so that its dashboards work; what TGI has no name for starts with `textmill_`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from textmill_router.generation import GenerationResult
from textmill_router.histogram import DURATION_BOUNDS_S, Histogram, linear_bounds
from textmill_router.request import FinishReason
from textmill_router.scheduler import SchedulerStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One owner for all counters of the HTTP side; the scheduler's own numbers are asked for at scrape."""

    def __init__(self) -> None:
        self.num_requests = 0  # generations asked for; best_of counts once
        self._successes = 0
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
        self._inter_token = Histogram(DURATION_BOUNDS_S)
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
        """A request obeys all rules."""
        assert self._input_length is not None
        assert self._max_new_tokens is not None
        self._input_length.observe(num_prompt_tokens)
        self._max_new_tokens.observe(max_new_tokens)
        self._prompt_tokens += num_prompt_tokens

    def on_success(self, result: GenerationResult, *, validation_s: float, total_s: float) -> None:
        """A generation is complete. Times in seconds."""
        assert self._generated_tokens is not None
        self._successes += 1
        self._finishes[result.finish_reason] += 1
        self._generated_tokens.observe(result.num_output_tokens)
        self._request_duration.observe(total_s)
        self._validation_duration.observe(validation_s)
        self._queue_duration.observe(result.queue_s)
        self._inference_duration.observe(result.inference_s)
        self._mean_time_per_token.observe(result.inference_s / max(1, result.num_output_tokens))
        self._time_to_first_token.observe(validation_s + result.first_token_s)

    def on_token_gap(self, gap_s: float) -> None:
        """A stream got its next token."""
        self._inter_token.observe(gap_s)

    def on_failure(self, err: str) -> None:
        """A generation ended without a result: overloaded, validation, generation, incomplete, dropped, loading."""
        self._failures[err] += 1

    def on_http(self, route: str, method: str, status: int) -> None:
        """An HTTP call is over; status 499 is a client that left before the answer began."""
        self._http[route, method, status] += 1

    def expose(self, stats: SchedulerStats | None, block_size: int) -> bytes:
        """The text of /metrics. `stats` is None before the first epoch; `block_size` is in tokens."""
        families = [*self._own_families(), *(_scheduler_families(stats, block_size) if stats else ())]
        return write_text([*families, *self._process.collect()])

    def _own_families(self) -> Iterator[Metric]:
        yield _counter("tgi_request_count", "Generations asked for", self.num_requests)
        yield _counter("tgi_request_success", "Generations that completed", self._successes)
        yield _counters(
            "tgi_request_failure",
            "Generations that failed, by cause",
            [({"err": err}, count) for err, count in sorted(self._failures.items())],
        )
        yield self._request_duration.family("tgi_request_duration", "Seconds from arrival to the end")
        yield self._validation_duration.family("tgi_request_validation_duration", "Seconds from arrival to the queue")
        yield self._queue_duration.family("tgi_request_queue_duration", "Seconds in the queue")
        yield self._inference_duration.family("tgi_request_inference_duration", "Seconds from the queue to the end")
        yield self._mean_time_per_token.family(
            "tgi_request_mean_time_per_token_duration", "Inference seconds divided by output tokens"
        )
        for histogram, name, text in (
            (self._input_length, "tgi_request_input_length", "Prompt tokens of a request"),
            (self._max_new_tokens, "tgi_request_max_new_tokens", "Output tokens that a request may get"),
            (self._generated_tokens, "tgi_request_generated_tokens", "Output tokens of a request"),
        ):
            if histogram is not None:
                yield histogram.family(name, text)
        yield self._time_to_first_token.family(
            "textmill_time_to_first_token_seconds", "Seconds from arrival to the first token"
        )
        yield self._inter_token.family(
            "textmill_inter_token_seconds", "Seconds between two tokens of a stream, as written to the client"
        )
        yield _counter("textmill_prompt_tokens", "Prompt tokens of validated requests", self._prompt_tokens)
        yield _counters(
            "textmill_request_finish",
            "Completed generations by reason",
            [({"reason": reason.value}, count) for reason, count in self._finishes.items()],
        )
        yield _counters(
            "textmill_http_requests",
            "HTTP calls by route, method and status",
            [
                ({"route": route, "method": method, "status": str(status)}, count)
                for (route, method, status), count in sorted(self._http.items())
            ],
        )


def _scheduler_families(stats: SchedulerStats, block_size: int) -> Iterator[Metric]:
    yield _gauge("tgi_queue_size", "Requests that wait for a slot", stats.num_waiting)
    yield _gauge("tgi_batch_current_size", "Requests that run", stats.num_running)
    yield _gauge("tgi_batch_current_max_tokens", "Tokens for which blocks are held", stats.num_held_blocks * block_size)
    yield _gauge("textmill_requests_running", "Requests that run", stats.num_running)
    yield _gauge("textmill_requests_waiting", "Requests that wait for a slot", stats.num_waiting)
    yield _gauge("textmill_waiting_tokens", "Tokens of the requests that wait", stats.num_waiting_tokens)
    blocks = GaugeMetricFamily("textmill_kv_blocks", "KV blocks by state", labels=["state"])
    blocks.add_metric(["free"], stats.num_free_blocks)
    blocks.add_metric(["cached"], stats.num_cached_blocks)
    blocks.add_metric(["held"], stats.num_held_blocks)
    yield blocks
    yield _gauge("textmill_kv_blocks_size", "KV blocks in all", stats.num_blocks)
    yield _gauge("textmill_slots_free", "Free slots of the shard", stats.num_free_slots)
    yield _gauge("textmill_slots_size", "Slots of the shard", stats.num_slots)
    yield _counter("textmill_preemptions", "Requests put back into the queue", stats.num_preemptions_total)
    yield _counter("textmill_starvations", "Steps that a slot missed for want of blocks", stats.num_starvations_total)
    yield _counter(
        "textmill_prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache", stats.num_prefix_hit_tokens_total
    )
    yield _counter(
        "textmill_prefix_cache_lookup_tokens",
        "Prompt tokens looked for in the prefix cache",
        stats.num_prefix_lookup_tokens_total,
    )
    yield _counter(
        "textmill_prompt_tokens_computed", "Prompt tokens computed by the shard", stats.num_prompt_tokens_computed_total
    )
    yield _counter("textmill_output_tokens", "Tokens sampled", stats.num_output_tokens_total)
    yield _counter("textmill_steps", "Steps of the shard", stats.num_steps_total)
    yield _counter("textmill_epochs", "Times a shard began with an empty KV pool", stats.num_epochs_total)


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


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return _counters(name, text, [({}, value)])


def _counters(name: str, text: str, rows: Iterable[tuple[dict[str, str], float]]) -> Metric:
    family = CounterMetricFamily(name, text)
    for labels, value in rows:
        family.add_sample(name, labels, value)
    return family


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")


def _escape(text: str, *, quote: bool = False) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quote else escaped
