"""What a writing task on `POST /` is asked for: the fields of the call, before them those of the checkpoint's files.

The names and their meaning are those of transformers' `GenerationConfig`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import msgspec

from textmill_router.api.tgi.writing_types import SearchFields, WritingFields, WritingParameters
from textmill_router.bounds import MAX_I32, MAX_U32, MAX_U64, shown_number
from textmill_router.errors import ValidationFailed
from textmill_router.request import Beams, EarlyStopping
from textmill_router.serving.checkpoint_defaults import CheckpointDefaults
from textmill_router.serving.languages import TextEnds
from textmill_router.serving.limits import Limits
from textmill_router.serving.service import Backend
from textmill_router.serving.validation import CheckedParameters, RequestedParameters, WholeLengths, check_parameters

MAX_SEQUENCES = 10
MAX_BEAMS = 8  # that a call may ask for; a checkpoint may ask for more
MAX_LENGTH_PENALTY = 100
DEFAULT_NEW_TOKENS = 256  # as in the pipelines of transformers
LEAST_TIME_S = 0.001  # what a call gets that asks for no time at all
Given: TypeAlias = Mapping[str, float]
_CUTS = (True, "longest_first", "only_first")
_DRAWN = (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("typical_p", 1.0))
WRITING_RANGES: Mapping[str, tuple[float, float]] = {
    "max_new_tokens": (1, MAX_U32),
    "max_length": (1, MAX_U32),
    "min_length": (0, MAX_U32),
    "min_new_tokens": (0, MAX_U32),
    "temperature": (0, 100),
    "top_k": (0, MAX_I32),
    "top_p": (0, 1),
    "repetition_penalty": (0, 100),
    "max_time": (0, 120),
    "num_return_sequences": (1, MAX_SEQUENCES),
    "num_beams": (1, MAX_BEAMS),
    "length_penalty": (-MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
    "no_repeat_ngram_size": (0, MAX_I32),
    "encoder_no_repeat_ngram_size": (0, MAX_I32),
    "seed": (0, MAX_U64),
}


@dataclass(frozen=True, slots=True)
class Wish:
    """The checked wish of a call. `beams` is None where tokens are chosen one by one.

    `num_sequences` is the number of texts for each input. `decoder_prompt_ids` are the first tokens of a decoder behind
    an encoder. `warnings` names what the checkpoint asks for and does not get.
    """

    checked: CheckedParameters
    beams: Beams | None
    num_sequences: int
    decoder_prompt_ids: tuple[int, ...]
    cuts: bool = False
    prefix: str = ""
    warnings: tuple[str, ...] = ()
    text_ends: TextEnds | None = None  # special tokens beside the text; None: those of the tokenizer


def read_wish(
    parameters: WritingParameters,
    defaults: CheckpointDefaults,
    backend: Backend,
    *,
    source: TextEnds | None = None,
    target_id: int | None = None,
) -> Wish:
    """Return the checked wish. The fields of an inner object win over those beside it. Raises ValidationFailed.

    `source` and `target_id` are the languages of a translation: what stands beside the text, and the token with which
    the answer begins.
    """
    parts = (parameters, parameters.generate_parameters, parameters.generation_parameters)
    given = merged_numbers(*parts)
    check_ranges(given)
    values = {**defaults.numbers, **given}
    said = _last(parts, "do_sample")
    asks_to_sample = given.get("temperature", 1.0) not in (0.0, 1.0) or bool(given.get("top_k")) or "top_p" in given
    samples = said if said is not None else asks_to_sample or (defaults.do_sample and "num_beams" not in given)
    beams, warnings = choose_beams(parts, given, defaults, backend, samples=bool(said) or asks_to_sample)
    if beams is not None and samples:
        warnings = (*warnings, "do_sample with beams")
        samples = False
    numbers: dict[str, float] = {}
    if samples or asks_to_sample:
        for name, off in _DRAWN:
            value = values.get(name)
            if value is not None and value != off:
                numbers[name] = int(value) if name == "top_k" else value
    if values.get("repetition_penalty") not in (None, 0.0, 1.0):
        numbers["repetition_penalty"] = values["repetition_penalty"]
    if "seed" in given:
        numbers["seed"] = int(given["seed"])
    if beams is not None:
        numbers = {name: value for name, value in numbers.items() if name == "repetition_penalty"}
    decoder_prompt_ids = decoder_prompt(parts, backend)
    if target_id is not None:
        decoder_prompt_ids = (decoder_prompt_ids[0], target_id)
    if backend.facts.has_encoder:
        num_forced = max(0, len(decoder_prompt_ids) - 1)
        lengths = encoder_lengths(given, defaults.numbers, num_forced=num_forced, fallback=DEFAULT_NEW_TOKENS)
    else:
        lengths = decoder_lengths(given, defaults.numbers)
    numbers.update(lengths.numbers)
    max_time_s = given.get("max_time")
    checked = check_parameters(
        RequestedParameters(
            numbers=numbers,
            do_sample=bool(samples),
            max_time=None if max_time_s is None else max(max_time_s, LEAST_TIME_S),
            bad_sequences=_known(defaults.bad_sequences, backend.limits),
        ),
        backend.limits,
    )
    num_sequences = int(given.get("num_return_sequences", 1))
    if num_sequences > 1 and beams is None and not checked.generation.sampling.do_sample:
        raise ValidationFailed(
            "`parameters.num_return_sequences` needs sampling or beams, or all sequences are equal; set `do_sample` or "
            "`num_beams`",
            field="parameters.num_return_sequences",
        )
    checked = with_search_rules(replace(checked, whole_lengths=lengths.whole), parts, given, defaults, backend)
    return Wish(
        checked=checked,
        beams=beams,
        num_sequences=num_sequences,
        decoder_prompt_ids=decoder_prompt_ids,
        cuts=parameters.truncation in _CUTS,
        prefix=defaults.prefix,
        warnings=(*warnings, *defaults.not_served),
        text_ends=source,
    )


def merged_numbers(*parts: SearchFields | None) -> dict[str, float]:
    """Return the numbers of a call by name. The later parts win."""
    found: dict[str, float] = {}
    for part in parts:
        if part is not None:
            for field in msgspec.structs.fields(type(part)):
                value = getattr(part, field.name)
                if isinstance(value, int | float) and not isinstance(value, bool) and field.name in _NUMBERS:
                    found[field.name] = value
    return found


_NUMBERS = {field.name for field in msgspec.structs.fields(WritingFields)} - {
    *("do_sample", "early_stopping", "forced_bos_token_id", "forced_eos_token_id")
}


def _last(parts: tuple[SearchFields | None, ...], name: str) -> bool | None:
    """Return the value of a field of the last part that has one."""
    for part in reversed(parts):
        value = getattr(part, name, None)
        if value is not None:
            return bool(value)
    return None


def check_ranges(given: Given) -> None:
    """Raise ValidationFailed for the first number out of its range."""
    for name, (low, high) in WRITING_RANGES.items():
        value = given.get(name)
        if value is not None and not low <= value <= high:
            path = f"parameters.{name}"
            raise ValidationFailed(f"`{path}` must be {low} to {high}, found {shown_number(value)}", field=path)


def choose_beams(
    parts: tuple[SearchFields | None, ...],
    given: Given,
    defaults: CheckpointDefaults,
    backend: Backend,
    *,
    samples: bool,
) -> tuple[Beams | None, tuple[str, ...]]:
    """Return the search that the call or the checkpoint asks for, and the warnings. Raises ValidationFailed.

    `samples`: the call itself asks to sample. Such a call has no beams unless it asks for them too, which is refused.
    """
    is_asked = "num_beams" in given
    num_beams = int(given.get("num_beams", defaults.numbers.get("num_beams", 1)))
    if num_beams <= 1 or (samples and not is_asked):
        return None, ()
    path = "parameters.num_beams"
    facts = backend.facts
    reason = ""
    if samples:
        reason = "1 where the call samples: leave out `do_sample`, `temperature`, `top_k` and `top_p`, or the beams"
    elif not facts.can_search_beams:
        reason = "1, because this shard searches no beams"
    elif num_beams > facts.num_slots:
        reason = f"at most {facts.num_slots} (--num-slots of the shard)"
    if reason and is_asked:
        raise ValidationFailed(f"`{path}` must be {reason}, found {num_beams}", field=path)
    if reason:
        return None, (f"num_beams {num_beams}",)
    num_sequences = int(given.get("num_return_sequences", 1))
    if num_sequences > num_beams:
        raise ValidationFailed(
            f"`parameters.num_return_sequences` must be at most `num_beams` ({num_beams}), found {num_sequences}",
            field="parameters.num_return_sequences",
        )
    return (
        Beams(
            num_beams=num_beams,
            num_sequences=num_sequences,
            length_penalty=given.get("length_penalty", defaults.numbers.get("length_penalty", 1.0)),
            early_stopping=_early_stopping(parts, defaults),
        ),
        (),
    )


def _early_stopping(parts: tuple[SearchFields | None, ...], defaults: CheckpointDefaults) -> EarlyStopping:
    value = defaults.early_stopping
    for part in parts:
        if part is not None and part.early_stopping is not None:
            value = part.early_stopping
    if value == "never":
        return EarlyStopping.NEVER
    return EarlyStopping.YES if value else EarlyStopping.NO


def with_search_rules(
    checked: CheckedParameters,
    parts: tuple[SearchFields | None, ...],
    given: Given,
    defaults: CheckpointDefaults,
    backend: Backend,
) -> CheckedParameters:
    """Add the rules that other dialects do not have. Raises ValidationFailed for ids that the model lacks."""
    last_ids = _known((defaults.forced_last_ids,), backend.limits)
    for part in parts:
        value = None if part is None else part.forced_eos_token_id
        if value is not None:
            ids = tuple(value) if isinstance(value, list) else (value,)
            _check_ids("forced_eos_token_id", ids, backend.limits)
            last_ids = (ids,)
    has_encoder = backend.facts.has_encoder
    size = int(given.get("no_repeat_ngram_size", defaults.numbers.get("no_repeat_ngram_size", 0)))
    of_encoder = int(given.get("encoder_no_repeat_ngram_size", defaults.numbers.get("encoder_no_repeat_ngram_size", 0)))
    sampling = replace(
        checked.generation.sampling,
        no_repeat_ngram_size=size,
        encoder_no_repeat_ngram_size=of_encoder if has_encoder else 0,
        forced_last_ids=last_ids[0] if last_ids else (),
    )
    return replace(checked, generation=replace(checked.generation, sampling=sampling))


def decoder_prompt(parts: tuple[SearchFields | None, ...], backend: Backend) -> tuple[int, ...]:
    """Return the first ids of the decoder: its start, and the token that an answer is forced to begin with."""
    own = backend.facts.decoder_prompt_ids
    for part in reversed(parts):
        forced = None if part is None else part.forced_bos_token_id
        if forced is not None:
            path = "parameters.forced_bos_token_id"
            if not own:
                raise ValidationFailed(f"`{path}` belongs to models with an encoder; leave it out", field=path)
            _check_ids("forced_bos_token_id", (forced,), backend.limits)
            return (own[0], forced)
    return own


def _check_ids(name: str, ids: tuple[int, ...], limits: Limits) -> None:
    for token_id in ids:
        if not 0 <= token_id < limits.vocab_size:
            path = f"parameters.{name}"
            raise ValidationFailed(f"`{path}` must be 0 to {limits.vocab_size - 1}, found {token_id}", field=path)


def _known(sequences: tuple[tuple[int, ...], ...], limits: Limits) -> tuple[tuple[int, ...], ...]:
    """Return the sequences of a checkpoint that the model could write."""
    return tuple(ids for ids in sequences if ids and all(0 <= one < limits.vocab_size for one in ids))


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of the answer, and those that count the tokens of the prompt too."""

    numbers: Mapping[str, float]
    whole: WholeLengths | None


def encoder_lengths(given: Given, defaults: Given, *, num_forced: int, fallback: int | None = None) -> Lengths:
    """Return the lengths behind an encoder, where `max_length` and `min_length` count the decoder's first token too.

    `num_forced` of the tokens that transformers counts as new are the decoder's own. `fallback` is the longest answer
    where neither call nor checkpoint bound the answer, unless the call wants a longer one. Raises ValidationFailed.
    """

    def new_tokens(name: str, values: Given) -> int | None:
        new, whole = values.get(f"{name}_new_tokens"), values.get(f"{name}_length")
        if new is None and whole is None:
            return None
        return int(new) if new is not None else int(whole or 0) - 1

    most, least = new_tokens("max", given), new_tokens("min", given)
    if most is not None and least is not None and least > most:
        name = "parameters.min_length" if given.get("min_new_tokens") is None else "parameters.min_new_tokens"
        raise ValidationFailed(
            f"`{name}` must not be larger than the longest answer, {most} new tokens, found {least} new tokens",
            field=name,
        )
    default = new_tokens("max", defaults) if most is None else None
    if most is None and default is None and fallback is not None:
        default = max(fallback, least or 0)
    least = new_tokens("min", defaults) if least is None else least
    numbers: dict[str, float] = {}
    if most is not None:
        numbers["max_new_tokens"] = max(1, most - num_forced)
    bound = math.inf if most is None and default is None else most if most is not None else default
    if least is not None and bound is not None and num_forced < least <= bound:
        numbers["min_new_tokens"] = min(least - num_forced, numbers.get("max_new_tokens", math.inf))
    whole = None if default is None else WholeLengths(default_new_tokens=max(1, default - num_forced))
    return Lengths(numbers, whole)


def decoder_lengths(given: Given, defaults: Given) -> Lengths:
    """Return the lengths for a model that continues its prompt, whose tokens `max_length` and `min_length` count."""
    numbers: dict[str, float] = {name: given[name] for name in ("max_new_tokens", "min_new_tokens") if name in given}
    is_bounded = "max_length" in given or "max_new_tokens" in given
    has_least = "min_length" in given or "min_new_tokens" in given
    least = given.get("min_length", None if has_least else defaults.get("min_length"))
    if not has_least and "max_new_tokens" not in given and defaults.get("min_new_tokens"):
        numbers["min_new_tokens"] = defaults["min_new_tokens"]
    whole = WholeLengths(
        max_tokens=_whole(given.get("max_length")),
        min_tokens=_whole(least) or None,
        default_tokens=None if is_bounded else _whole(defaults.get("max_length")),
        default_new_tokens=None if is_bounded else _whole(defaults.get("max_new_tokens")),
    )
    return Lengths(numbers, None if whole == WholeLengths() else whole)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
