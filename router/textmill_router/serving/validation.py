"""The rules that a request's parameters and length obey, whatever the dialect it came in."""

import math
import random
from array import array
from dataclasses import dataclass, replace

from textmill_router.errors import OverBudget, ValidationFailed
from textmill_router.request import GenerationParameters, Grammar, SamplingParameters
from textmill_router.serving.limits import Limits

MAX_U32 = 2**32 - 1
MAX_U64 = 2**64 - 1
# A larger wish than this passes when this much fits; the answer then ends when the window is full.
CHECKED_NEW_TOKENS = 1024
# Below it, division of the logits by the temperature leaves the range of 32-bit floats: the draw is the best token.
LEAST_TEMPERATURE = 1e-6
# Random seeds are small enough to survive clients that read numbers as doubles.
SEED_BITS = 53


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedParameters:
    """Parameters as asked for, of the right types, None where absent."""

    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    best_of: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    max_time: float | None = None  # seconds
    ignore_eos: bool = False
    grammar: Grammar | None = None
    watermark: bool = False
    stop: tuple[str, ...] = ()
    truncate: int | None = None
    top_n_tokens: int | None = None
    wants_prompt_details: bool = False
    streams: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedParameters:
    """Parameters that obey every rule: those that the shard gets, and those that only the HTTP side knows.

    The grammar has the right shape; whether it compiles, `GrammarCompiler.check` says. The seed counts only where the
    request samples.
    """

    generation: GenerationParameters
    best_of: int
    max_new_tokens: int | None  # None: what the window leaves
    max_time: float | None  # seconds from arrival
    stop: tuple[str, ...]
    truncate: int | None
    top_n_tokens: int


def check_parameters(requested: RequestedParameters, limits: Limits) -> CheckedParameters:
    """Check in the order of the contract; the first broken rule raises ValidationFailed."""
    _check_best_of(requested, limits)
    temperature = _float32("temperature", requested.temperature, 1.0)
    if temperature < 0:
        raise _refuse("temperature", f"must be >= 0 (0 is greedy), found {temperature:g}")
    repetition_penalty = _float32("repetition_penalty", requested.repetition_penalty, 1.0)
    if repetition_penalty <= 0:
        raise _refuse("repetition_penalty", f"must be > 0 (1 is off), found {repetition_penalty:g}")
    frequency_penalty = _penalty("frequency_penalty", requested.frequency_penalty)
    presence_penalty = _penalty("presence_penalty", requested.presence_penalty)
    top_p = _mass("top_p", requested.top_p)
    typical_p = _mass("typical_p", requested.typical_p)
    top_k = _whole("top_k", requested.top_k, low=1, high=MAX_U32, off=0)
    min_p = _float32("min_p", requested.min_p, 0.0)
    if not 0 <= min_p < 1:
        raise _refuse("min_p", f"must be >= 0 and < 1 (0 is off), found {min_p:g}")
    max_new_tokens = requested.max_new_tokens
    if max_new_tokens is not None:
        _whole("max_new_tokens", max_new_tokens, low=1, high=MAX_U32)
    min_new_tokens = _whole("min_new_tokens", requested.min_new_tokens, low=0, high=MAX_U32)
    if max_new_tokens is not None and min_new_tokens > max_new_tokens:
        raise _refuse("min_new_tokens", f"must be <= `max_new_tokens` {max_new_tokens}, found {min_new_tokens}")
    if requested.max_time is not None and not 0 < requested.max_time < math.inf:
        raise _refuse("max_time", f"must be a number of seconds > 0, found {requested.max_time:g}")
    _check_stop(requested.stop, limits)
    if requested.seed is not None:
        if requested.best_of is not None and requested.best_of > 1:
            raise _refuse("seed", "must not be set when `best_of` > 1: equal seeds give equal sequences; leave one out")
        _whole("seed", requested.seed, low=0, high=MAX_U64)
    top_n_tokens = _whole("top_n_tokens", requested.top_n_tokens, low=0, high=limits.max_top_n_tokens)
    logit_bias = _check_logit_bias(requested.logit_bias, limits)
    if requested.truncate is not None:
        _whole("truncate", requested.truncate, low=1, high=limits.max_input_tokens)
    asks_to_sample = requested.do_sample or temperature != 1.0 or top_k > 0 or top_p < 1.0 or typical_p < 1.0
    do_sample = asks_to_sample and temperature >= LEAST_TEMPERATURE
    sampling = SamplingParameters(
        do_sample=do_sample,
        temperature=temperature if do_sample else 1.0,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=(draw_seed() if requested.seed is None else requested.seed) if do_sample else 0,
        logit_bias=logit_bias,
    )
    generation = GenerationParameters(
        sampling=sampling,
        min_new_tokens=min_new_tokens,
        ignore_eos=requested.ignore_eos,
        grammar=requested.grammar,
        watermark=requested.watermark,
    )
    return CheckedParameters(
        generation=generation,
        best_of=requested.best_of or 1,
        max_new_tokens=max_new_tokens,
        max_time=requested.max_time,
        stop=requested.stop,
        truncate=requested.truncate,
        top_n_tokens=top_n_tokens,
    )


def draw_seed() -> int:
    """A seed for a request that samples and names none."""
    return random.getrandbits(SEED_BITS)


def with_seed(parameters: GenerationParameters, seed: int) -> GenerationParameters:
    """The parameters of a further sequence of a call, which differs in its seed (unsigned, 64 bits) alone."""
    return replace(parameters, sampling=replace(parameters.sampling, seed=seed))


def with_drawn_seed(parameters: GenerationParameters) -> GenerationParameters:
    """The parameters of a further sequence of best_of, with a seed of its own where the request samples."""
    return with_seed(parameters, draw_seed()) if parameters.sampling.do_sample else parameters


def check_budget(num_prompt_tokens: int, max_new_tokens: int | None, limits: Limits) -> int:
    """Output tokens that the request gets: what it asks for, at most the rest of the window. Raises OverBudget."""
    room = limits.max_total_tokens - num_prompt_tokens
    wanted = room if max_new_tokens is None else max_new_tokens
    if num_prompt_tokens + max(0, min(wanted, CHECKED_NEW_TOKENS)) > limits.max_total_tokens:
        new_tokens = (
            "`max_new_tokens` is not set" if max_new_tokens is None else f"`max_new_tokens` is {max_new_tokens}"
        )
        raise OverBudget(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens} (--max-total-tokens): the prompt "
            f"has {num_prompt_tokens} tokens and {new_tokens}; shorten `inputs`, set `truncate` or ask for less",
            field="max_new_tokens",
            max_tokens=limits.max_total_tokens,
            window_tokens=limits.max_total_tokens,
            found=f"the prompt has {num_prompt_tokens} tokens and {new_tokens}",
        )
    if num_prompt_tokens > limits.max_input_tokens:
        raise prompt_too_long(f"{num_prompt_tokens}", limits)
    if limits.max_output_tokens is not None:
        _check_output(max_new_tokens, limits.max_output_tokens, limits)
        room = min(room, limits.max_output_tokens)
    return min(wanted, room)


def _check_output(max_new_tokens: int | None, max_output_tokens: int, limits: Limits) -> None:
    if max_new_tokens is None or min(max_new_tokens, CHECKED_NEW_TOKENS) <= max_output_tokens:
        return
    raise OverBudget(
        f"`max_new_tokens` must be <= {max_output_tokens} (the positions of the decoder), found {max_new_tokens}",
        field="max_new_tokens",
        max_tokens=max_output_tokens,
        window_tokens=limits.max_total_tokens,
        found=f"`max_new_tokens` is {max_new_tokens}, the decoder has positions for {max_output_tokens}",
    )


def prompt_too_long(shown_tokens: str, limits: Limits) -> OverBudget:
    """The refusal of a prompt that is longer than the limit, whether its tokens were counted or not."""
    return OverBudget(
        f"the prompt has {shown_tokens} tokens, the limit is {limits.max_input_tokens} ({limits.input_limit}), and "
        f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}; shorten `inputs` or set `truncate`",
        field="inputs",
        max_tokens=limits.max_input_tokens,
        window_tokens=limits.max_total_tokens,
        found=f"the prompt has {shown_tokens} tokens, the limit of a prompt is {limits.max_input_tokens}",
    )


def check_text(text: str) -> None:
    """A prompt that is not empty. Raises ValidationFailed."""
    if not text:
        raise _refuse("inputs", "must not be empty, found an empty string; send at least one character")


def check_adapter(adapter_id: str | None) -> None:
    """Raise ValidationFailed for an adapter: none is loaded."""
    if adapter_id is not None:
        raise _refuse("adapter_id", f"{adapter_id!r} is not loaded: this server has no adapters; leave it out")


def _check_best_of(requested: RequestedParameters, limits: Limits) -> None:
    best_of = requested.best_of
    if requested.streams and best_of is not None and best_of != 1:
        raise _refuse("best_of", f"must be 1 when streaming, found {best_of}; leave it out or do not stream")
    if requested.streams and requested.wants_prompt_details:
        raise _refuse("decoder_input_details", "must be false when streaming; prompt tokens are never streamed")
    if best_of is None:
        return
    _whole("best_of", best_of, low=1, high=limits.max_best_of, flag=" (--max-best-of)")
    given = (requested.temperature, requested.top_k, requested.top_p, requested.typical_p)
    samples = (requested.do_sample or any(wish is not None for wish in given)) and requested.temperature != 0
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


def _check_logit_bias(bias: tuple[tuple[int, float], ...], limits: Limits) -> tuple[tuple[int, float], ...]:
    checked = []
    for token_id, value in bias:
        if not 0 <= token_id < limits.vocab_size:
            raise _refuse("logit_bias", f"ids must be 0 to {limits.vocab_size - 1} (the vocabulary), found {token_id}")
        if not -100 <= value <= 100:
            raise _refuse("logit_bias", f"values must be -100 to 100, found {value:g} for id {token_id}")
        checked.append((token_id, value))
    return tuple(checked)


def _whole(name: str, value: int | None, *, low: int, high: int, off: int = 0, flag: str = "") -> int:
    """The value, checked; `off` when absent."""
    if value is None:
        return off
    if not low <= value <= high:
        raise _refuse(name, f"must be {low} to {high}{flag}, found {value}")
    return value


def _mass(name: str, value: float | None) -> float:
    mass = _float32(name, value, 1.0)
    if not 0 < mass <= 1:
        raise _refuse(name, f"must be > 0 and <= 1 (1 is off), found {mass:g}")
    return mass


def _penalty(name: str, value: float | None) -> float:
    penalty = _float32(name, value, 0.0)
    if not -2 <= penalty <= 2:
        raise _refuse(name, f"must be -2 to 2 (0 is off), found {penalty:g}")
    return penalty


def _float32(name: str, value: float | None, off: float) -> float:
    """The value when it is finite in 32 bits, the width on the wire; `off` when absent."""
    if value is None:
        return off
    try:
        rounded = array("f", [value])[0]
    except OverflowError:
        rounded = math.inf
    if not math.isfinite(rounded):
        raise _refuse(name, f"must be a finite 32-bit number, found {value:g}")
    return value if rounded else 0.0


def _refuse(name: str, message: str) -> ValidationFailed:
    return ValidationFailed(f"`{name}` {message}", field=name)
