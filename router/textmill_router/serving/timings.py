"""Where the time of a call went: the header `x-textmill-timings`, and the object `timings` for those who ask."""

from collections.abc import Sequence

import msgspec

from textmill_router.http.error_responses import Header
from textmill_router.text.events import GenerationResult

TIMINGS_HEADER = b"x-textmill-timings"


class TextmillOptions(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The field `textmill` of a body, which has the wishes that no other server knows."""

    timings: bool | None = None


class Timings(msgspec.Struct, frozen=True, gc=False):
    """Where the time of a call went. Times are those of the longest sequence, counts those of all sequences.

    A step is one forward pass. A request takes part in one for each chunk of its prompt and for each further token.
    """

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    cached_tokens: int
    preemptions: int
    steps: int


def timings_of(results: Sequence[GenerationResult]) -> Timings:
    """Return the timings of the sequences of a call."""
    return Timings(
        queue_ms=_ms(max(result.queue_s for result in results)),
        prefill_ms=_ms(max(result.prefill_s for result in results)),
        decode_ms=_ms(max(result.decode_s for result in results)),
        cached_tokens=sum(result.num_cached_tokens for result in results),
        preemptions=sum(result.num_preemptions for result in results),
        steps=sum(result.num_steps for result in results),
    )


NO_TIMINGS = Timings(0.0, 0.0, 0.0, 0, 0, 0)


def timings_header(timings: Timings) -> Header:
    """Return the header, a dictionary of RFC 8941: `queue-ms=0.1, prefill-ms=20.5, ...`."""
    pairs = (f"{name.replace('_', '-')}={getattr(timings, name)}" for name in Timings.__struct_fields__)
    return TIMINGS_HEADER, ", ".join(pairs).encode()


def wants_timings(options: TextmillOptions | None) -> bool:
    """Whether a body asks for the object `timings`."""
    return options is not None and bool(options.timings)


def timings_member(results: Sequence[GenerationResult]) -> str:
    """Return the member of a JSON object, behind a comma."""
    return f',"timings":{msgspec.json.encode(timings_of(results)).decode()}'


def _ms(duration_s: float) -> float:
    return round(duration_s * 1000, 3)
