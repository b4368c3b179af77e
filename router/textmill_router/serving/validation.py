"""The rules that a request's parameters obey, whatever the dialect that the request came in."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from textmill_router.bounds import LEAST_TEMPERATURE, MAX_U32, MAX_U64, Bounds, bounds_of
from textmill_router.errors import RuleBroken
from textmill_router.grammar.request_forms import AskedGrammar
from textmill_router.request import GenerationParameters, SamplingParameters
from textmill_router.serving.limits import Limits

# Random seeds are small enough to survive clients that read numbers as doubles.
SEED_BITS = 53
DEFAULT_DRY_BREAKERS = ("\n", ":", '"', "*")
MAX_DRY_BREAKERS = 16
MAX_DRY_BREAKER_CHARACTERS = 40


# Rows of the numbers that a call may give beside the numbers of `SamplingParameters`.
_CALL_BOUNDS = {
    "max_new_tokens": Bounds(low=1, high=MAX_U32),
    "min_new_tokens": Bounds(low=0, high=MAX_U32, off=0),
    "seed": Bounds(low=0, high=MAX_U64),
    "top_n_tokens": Bounds(low=0, high=MAX_U32, off=0),  # `Limits.max_top_n_tokens` is the upper edge
    "truncate": Bounds(low=1, high=MAX_U32),  # `Limits.max_input_tokens` is the upper edge
}
_SAMPLING_BOUNDS = bounds_of(SamplingParameters)
PARAMETER_BOUNDS = {**_SAMPLING_BOUNDS, **_CALL_BOUNDS}
# OpenAI's seeds are signed 64-bit integers; seeds that only TGI has may be given too.
SIGNED_SEED = Bounds(low=-(2**63), high=MAX_U64)
_BEST_OF = Bounds(low=1, high=MAX_U32, off=1, note="--max-best-of")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedParameters:
    """Parameters as a client asked for them, of the right types. A parameter that the client did not give is None.

    `numbers` holds the numbers that have a row in `PARAMETER_BOUNDS`, by the names of the rows. A number that the
    client did not give has no entry.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    do_sample: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    best_of: int | None = None
    max_time: float | None = None  # seconds
    ignore_eos: bool = False
    grammar: AskedGrammar | None = None
    watermark: bool = False
    dry_sequence_breakers: tuple[str, ...] = DEFAULT_DRY_BREAKERS
    allowed_ids: tuple[int, ...] = ()  # ids of the model's vocabulary; empty: every id
    bad_sequences: tuple[tuple[int, ...], ...] = ()  # of ids of the vocabulary; no empty sequence
    stop: tuple[str, ...] = ()
    wants_prompt_details: bool = False
    streams: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedParameters:
    """Parameters that obey every rule. `generation` goes to the shard; the other fields stay on the HTTP side.

    The grammar has the right shape, and `GrammarCompiler.check` says whether the grammar compiles. The seed counts only
    where the request samples.
    """

    generation: GenerationParameters
    asked_grammar: AskedGrammar | None  # which the finished output is checked against
    best_of: int
    max_new_tokens: int | None  # None stands for the rest of the window
    max_time: float | None  # seconds from arrival
    stop: tuple[str, ...]
    truncate: int | None
    top_n_tokens: int
    whole_lengths: "WholeLengths | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeLengths:
    """Lengths in tokens that count where the call does not bound the answer itself.

    `max_tokens` and `min_tokens` are of prompt and answer together. The call asks for `max_tokens`; `default_tokens`
    and `default_new_tokens` (of the answer alone) are the checkpoint's bounds, which refuse no prompt.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    default_tokens: int | None = None
    default_new_tokens: int | None = None


def numbers_of(body: object, names: Mapping[str, str] | None = None) -> dict[str, float]:
    """Return the numbers of a body by the names of their rows; `names` maps a row's name to the body's own name."""
    names = names or {}
    found = {}
    for name in PARAMETER_BOUNDS:
        value = getattr(body, names.get(name, name), None)
        if value is not None:
            found[name] = value
    return found


def breakers_of(body: object) -> tuple[str, ...]:
    """Return the texts of a body's `dry_sequence_breakers`, or the default texts where the body has none."""
    texts: list[str] | None = getattr(body, "dry_sequence_breakers", None)
    return DEFAULT_DRY_BREAKERS if texts is None else tuple(texts)


def check_parameters(requested: RequestedParameters, limits: Limits) -> CheckedParameters:
    """Return the checked parameters. Raises RuleBroken for the first broken rule, in the order of the contract."""
    _check_best_of(requested, limits)
    asked = requested.numbers
    drawn: dict[str, Any] = {name: row.check(name, asked.get(name)) for name, row in _SAMPLING_BOUNDS.items()}
    max_new_tokens = _whole("max_new_tokens", asked)
    min_new_tokens = _whole("min_new_tokens", asked) or 0
    if max_new_tokens is not None and min_new_tokens > max_new_tokens:
        raise _refuse(
            "min_new_tokens",
            "must be <= `{max_new_tokens}` {most}, found {found}",
            most=max_new_tokens,
            found=min_new_tokens,
        )
    if requested.max_time is not None and not 0 < requested.max_time < math.inf:
        raise _refuse("max_time", f"must be a number of seconds > 0, found {requested.max_time:g}")
    _check_stop(requested.stop, limits)
    _check_dry_breakers(requested.dry_sequence_breakers)
    if "seed" in asked and requested.best_of is not None and requested.best_of > 1:
        raise _refuse("seed", "must not be set when `{best_of}` > 1: equal seeds give equal sequences; leave one out")
    seed = _whole("seed", asked)
    top_n_tokens = _whole("top_n_tokens", asked, high=limits.max_top_n_tokens) or 0
    logit_bias = _check_logit_bias(requested.logit_bias, limits)
    truncate = _whole("truncate", asked, high=limits.max_input_tokens)
    asks_to_sample = requested.do_sample or any(
        row.asks_to_sample and drawn[name] != row.off for name, row in _SAMPLING_BOUNDS.items()
    )
    do_sample = asks_to_sample and drawn["temperature"] >= LEAST_TEMPERATURE
    if not do_sample:
        drawn["temperature"], seed = 1.0, 0
    elif seed is None:
        seed = draw_seed()
    asked_grammar = requested.grammar
    sampling = SamplingParameters(
        do_sample=do_sample,
        seed=seed,
        logit_bias=logit_bias,
        allowed_ids=requested.allowed_ids,
        bad_sequences=requested.bad_sequences,
        **drawn,
    )
    generation = GenerationParameters(
        sampling=sampling,
        min_new_tokens=min_new_tokens,
        ignore_eos=requested.ignore_eos,
        grammar=None if asked_grammar is None else asked_grammar.whole_output(closes_objects=limits.closes_objects),
        watermark=requested.watermark,
        dry_sequence_breakers=requested.dry_sequence_breakers,
    )
    return CheckedParameters(
        generation=generation,
        asked_grammar=asked_grammar,
        best_of=requested.best_of or 1,
        max_new_tokens=max_new_tokens,
        max_time=requested.max_time,
        stop=requested.stop,
        truncate=truncate,
        top_n_tokens=top_n_tokens,
    )


def unsigned_seed(seed: int) -> int:
    """Return the two's complement of a signed 64-bit seed, so that each seed gives tokens of its own.

    Raises RuleBroken for a seed that is neither signed nor unsigned in 64 bits.
    """
    SIGNED_SEED.check("seed", seed)
    return seed & MAX_U64


def draw_seed() -> int:
    """Return a random seed, for a request that samples and names no seed."""
    return random.getrandbits(SEED_BITS)


def with_seed(parameters: GenerationParameters, seed: int) -> GenerationParameters:
    """Return the parameters of a further sequence of a call, which differ in the seed (unsigned, 64 bits) alone."""
    return replace(parameters, sampling=replace(parameters.sampling, seed=seed))


def with_drawn_seed(parameters: GenerationParameters) -> GenerationParameters:
    """Return the parameters of a further sequence of best_of, with a seed of its own where the request samples."""
    return with_seed(parameters, draw_seed()) if parameters.sampling.do_sample else parameters


def check_text(text: str) -> None:
    """Raise RuleBroken for an empty prompt."""
    if not text:
        raise _refuse("inputs", "must not be empty, found an empty string; send at least one character")


def _check_best_of(requested: RequestedParameters, limits: Limits) -> None:
    best_of = requested.best_of
    if requested.streams and best_of is not None and best_of != 1:
        raise _refuse("best_of", f"must be 1 when streaming, found {best_of}; leave it out or do not stream")
    if requested.streams and requested.wants_prompt_details:
        raise _refuse("decoder_input_details", "must be false when streaming; prompt tokens are never streamed")
    if best_of is None:
        return
    _BEST_OF.check("best_of", best_of, high=limits.max_best_of)
    gives_one = any(row.asks_to_sample and name in requested.numbers for name, row in _SAMPLING_BOUNDS.items())
    samples = (requested.do_sample or gives_one) and requested.numbers.get("temperature") != 0
    if best_of > 1 and not samples:
        raise _refuse(
            "best_of",
            f"{best_of} needs sampling, or all sequences are equal; set `do_sample`, `temperature`, `top_k`, `top_p` "
            "or `typical_p`",
        )


def _check_stop(stop: tuple[str, ...], limits: Limits) -> None:
    if len(stop) > limits.max_stop_sequences:
        raise _refuse(
            "stop", f"must have at most {limits.max_stop_sequences} strings (--max-stop-sequences), found {len(stop)}"
        )
    if "" in stop:
        raise _refuse("stop", "must not hold an empty string: it would match before the first token; leave it out")


def _check_dry_breakers(texts: tuple[str, ...]) -> None:
    name, most = "dry_sequence_breakers", MAX_DRY_BREAKER_CHARACTERS
    if len(texts) > MAX_DRY_BREAKERS:
        raise _refuse(name, f"must have at most {MAX_DRY_BREAKERS} strings, found {len(texts)}")
    for text in texts:
        if not 0 < len(text) <= most:
            raise _refuse(name, f"must hold strings of 1 to {most} characters, found one of {len(text)}")


def _check_logit_bias(bias: tuple[tuple[int, float], ...], limits: Limits) -> tuple[tuple[int, float], ...]:
    checked = []
    for token_id, value in bias:
        if not 0 <= token_id < limits.vocab_size:
            raise _refuse("logit_bias", f"ids must be 0 to {limits.vocab_size - 1} (the vocabulary), found {token_id}")
        if not -100 <= value <= 100:
            raise _refuse("logit_bias", f"values must be -100 to 100, found {value:g} for id {token_id}")
        checked.append((token_id, value))
    return tuple(checked)


def _whole(name: str, asked: Mapping[str, float], *, high: int | None = None) -> int | None:
    """Return a number of the call after its check, or the `off` of its row where the number is absent."""
    value = _CALL_BOUNDS[name].check(name, asked.get(name), high=high)
    assert value is None or isinstance(value, int), name
    return value


def _refuse(name: str, rule: str, **facts: object) -> RuleBroken:
    return RuleBroken(f"`{{field}}` {rule}", field=name, **facts)
