"""The workloads of the comparison: the requests that every server gets, and the figure that counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.dialects import GenerationWish
from bench.prompts import PromptMaker

SHARED_TOKENS = 1500
OWN_TOKENS = 32
NUM_SHARING = 8


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload.

    `make` gives the requests. The first `num_first` of them go ahead alone, then `concurrency` clients send the others.
    `figure` reads the number that counts from the summary of those others. With `is_rate` a larger number is better,
    without it a smaller one.
    """

    name: str
    unit: str
    is_rate: bool
    concurrency: int
    num_first: int
    make: Callable[[PromptMaker], Sequence[GenerationWish]]
    figure: Callable[[dict[str, Any]], float]


def streams(count: int, *, input_len: int, output_len: int, num_requests: int) -> Workload:
    """Return the workload of `count` requests at once; its figure is output tokens per second."""
    return Workload(
        name=f"{count} streams, {input_len} in, {output_len} out",
        unit="tokens/s",
        is_rate=True,
        concurrency=count,
        num_first=0,
        make=lambda maker: [
            GenerationWish(text, output_len, ignore_eos=True) for text in maker.texts(num_requests, input_len)
        ],
        figure=lambda summary: float(summary["output_tokens_per_s"]),
    )


def first_token(input_len: int, num_requests: int = 4) -> Workload:
    """Return the workload of one request at a time; its figure is the median time to first token."""
    return Workload(
        name=f"TTFT of {input_len} tokens",
        unit="ms",
        is_rate=False,
        concurrency=1,
        num_first=1,
        make=lambda maker: [GenerationWish(text, 8, ignore_eos=True) for text in maker.texts(num_requests, input_len)],
        figure=lambda summary: float(summary["ttft_ms"]["p50"]),
    )


def cached_prefix() -> Workload:
    """Return the workload of prompts behind a prefix that the first request leaves in the cache.

    One request runs at a time, and the figure is the median time to first token.
    """
    return Workload(
        name=f"TTFT behind a cached prefix of {SHARED_TOKENS}",
        unit="ms",
        is_rate=False,
        concurrency=1,
        num_first=1,
        make=_sharing,
        figure=lambda summary: float(summary["ttft_ms"]["p50"]),
    )


def shared_at_once() -> Workload:
    """Return the workload of prompts that arrive at once, behind a common prefix that is not computed yet.

    The figure is the seconds until the last request has ended.
    """
    return Workload(
        name=f"{NUM_SHARING} at once behind a cold common prefix of {SHARED_TOKENS}",
        unit="s",
        is_rate=False,
        concurrency=NUM_SHARING,
        num_first=0,
        make=_sharing,
        figure=lambda summary: float(summary["duration_s"]),
    )


def _sharing(maker: PromptMaker) -> list[GenerationWish]:
    texts = maker.texts(NUM_SHARING, OWN_TOKENS, num_shared_tokens=SHARED_TOKENS)
    return [GenerationWish(text, 16, ignore_eos=True) for text in texts]
