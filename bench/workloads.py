"""What is asked of every server of the comparison, and which figure counts."""

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
    """`make` gives the requests, sent by `concurrency` clients after `num_first` of them went ahead alone.

    `figure` reads the number that counts from the summary of the rest; `is_rate`: more is better, else less is.
    """

    name: str
    unit: str
    is_rate: bool
    concurrency: int
    num_first: int
    make: Callable[[PromptMaker], Sequence[GenerationWish]]
    figure: Callable[[dict[str, Any]], float]


def streams(count: int, *, input_len: int, output_len: int, num_requests: int) -> Workload:
    """So many at once: output tokens per second."""
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
    """One at a time: median time to first token of a prompt."""
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
    """One at a time behind a common prefix that the first has left in the cache: median time to first token."""
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
    """All at once behind a common prefix that nobody has computed: seconds until the last has ended."""
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
