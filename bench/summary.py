"""The figures of a run: percentiles and rates, as plain JSON values. The name of each time ends with its unit."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from bench.http_stream import StreamRecord

PERCENTILES = (50, 90, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, by linear interpolation between the two nearest ranks. `values` are sorted and not empty."""
    place = (len(values) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def spread_ms(seconds: Iterable[float]) -> dict[str, float] | None:
    """Return mean, percentiles and maximum of durations, in milliseconds; None when there are no durations."""
    values = sorted(second * 1000 for second in seconds)
    if not values:
        return None
    figures = {"mean": sum(values) / len(values)}
    figures |= {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}
    figures["max"] = values[-1]
    return {name: round(value, 3) for name, value in figures.items()}


def summarise(records: Sequence[StreamRecord]) -> dict[str, Any]:
    """Return the figures of the requests that succeeded. Failed requests are counted, and up to five errors shown.

    `ttft_ms` and `e2e_ms` count from the time at which a request was due, so that an overloaded open loop cannot hide
    its queue. `itl_ms` is the time between two events of a stream, and `tpot_ms` the mean of that time in a request.
    """
    good = [record for record in records if record.error is None and record.token_times_s]
    failed = [record for record in records if record not in good]
    figures: dict[str, Any] = {"num_requests": len(records), "num_failed": len(failed)}
    if failed:
        figures["errors"] = sorted({f"{record.status}: {record.error}" for record in failed})[:5]
    if not good:
        return figures
    duration_s = max(record.done_s for record in good) - min(record.sent_s for record in good)
    num_output_tokens = sum(record.num_output_tokens for record in good)
    longer = [record for record in good if len(record.token_times_s) > 1]
    return figures | {
        "duration_s": round(duration_s, 3),
        "num_prompt_tokens": sum(record.num_prompt_tokens or 0 for record in good),
        "num_output_tokens": num_output_tokens,
        "output_tokens_per_s": round(num_output_tokens / duration_s, 2),
        "requests_per_s": round(len(good) / duration_s, 3),
        "ttft_ms": spread_ms(record.token_times_s[0] - record.due_s for record in good),
        "itl_ms": spread_ms(later - earlier for record in longer for earlier, later in pairwise(record.token_times_s)),
        "tpot_ms": spread_ms(
            (record.token_times_s[-1] - record.token_times_s[0]) / (len(record.token_times_s) - 1) for record in longer
        ),
        "e2e_ms": spread_ms(record.done_s - record.due_s for record in good),
        "start_delay_ms": spread_ms(record.sent_s - record.due_s for record in good),
    }
