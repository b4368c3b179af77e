"""The figures of a level: counts, rates, and the distribution of each time. Names end with their unit."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from textmill_bench.client import Record

MAX_ERRORS = 5  # kinds of errors that a level shows
QUANTILES = 100  # parts into which a distribution is cut
TIMES = ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a level: so many requests at once, or so many a second on average."""

    concurrency: int | None = None
    rate_per_s: float | None = None

    def __str__(self) -> str:
        if self.concurrency is not None:
            return f"{self.concurrency} at once"
        return f"{self.rate_per_s:g}/s"


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share from 0 to 1 of the sorted values lies, between the two nearest ranks."""
    place = (len(values) - 1) * share
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def distribution_ms(durations_s: Iterable[float]) -> dict[str, Any] | None:
    """Return mean, median, p90, p99, maximum, and 101 quantiles of durations in milliseconds; None without any."""
    values = sorted(1000 * duration_s for duration_s in durations_s)
    if not values:
        return None
    return {
        "mean": round(sum(values) / len(values), 3),
        "p50": round(quantile(values, 0.5), 3),
        "p90": round(quantile(values, 0.9), 3),
        "p99": round(quantile(values, 0.99), 3),
        "max": round(values[-1], 3),
        "quantiles": [round(quantile(values, part / QUANTILES), 3) for part in range(QUANTILES + 1)],
    }


def figures_of(records: Sequence[Record], *, client_cpu_s: float = 0.0) -> dict[str, Any]:
    """Return the figures of one level.

    Rates and times are those of the requests that came whole. A level lasts from the first request that was due to the
    last end. `ttft_ms` and `e2e_ms` count from the time at which a request was due, so that an open loop cannot hide
    its queue. `itl_ms` is the time between two events of a stream, and `tpot_ms` the mean of that time in a request.
    `client_cpu_share` near 1 means that this client was the limit.
    """
    good = [record for record in records if record.is_good]
    failed = [record for record in records if not record.is_good]
    figures: dict[str, Any] = {
        "num_requests": len(records),
        "num_failed": len(failed),
        "errors": _kinds_of(failed),
    }
    if not good:
        return figures
    duration_s = max(record.done_s for record in records) - min(record.due_s for record in records)
    num_output_tokens = sum(record.num_output_tokens for record in good)
    known_prompts = [record.num_prompt_tokens for record in good if record.num_prompt_tokens is not None]
    longer = [record.event_times_s for record in good if len(record.event_times_s) > 1]
    return figures | {
        "duration_s": round(duration_s, 3),
        "num_prompt_tokens": sum(known_prompts) if len(known_prompts) == len(good) else None,
        "num_cached_tokens": _sum_or_none([record.num_cached_tokens for record in good]),
        "num_output_tokens": num_output_tokens,
        "output_tokens_per_s": round(num_output_tokens / duration_s, 2),
        "requests_per_s": round(len(good) / duration_s, 3),
        "ttft_ms": distribution_ms(record.ttft_s for record in good),
        "itl_ms": distribution_ms(later - earlier for times in longer for earlier, later in pairwise(times)),
        "tpot_ms": distribution_ms((times[-1] - times[0]) / (len(times) - 1) for times in longer),
        "e2e_ms": distribution_ms(record.e2e_s for record in good),
        "start_delay_ms": distribution_ms(record.sent_s - record.due_s for record in records),
        "client_cpu_share": round(client_cpu_s / duration_s, 3),
    }


def _sum_or_none(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _kinds_of(failed: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the kinds of failures with their counts, the most frequent first."""
    counts: dict[tuple[int, str], int] = {}
    for record in failed:
        kind = (record.status, record.error or "the answer has no output")
        counts[kind] = counts.get(kind, 0) + 1
    kinds = sorted(counts.items(), key=lambda entry: -entry[1])[:MAX_ERRORS]
    return [{"status": status, "error": error, "count": count} for (status, error), count in kinds]
