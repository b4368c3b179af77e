"""How a text about an image is written: the fields of a call that the shard's generation obeys."""

from collections.abc import Mapping

import msgspec

from textmill_router.bounds import LEAST_TEMPERATURE, MAX_I32, rounded32, shown_number
from textmill_router.errors import ValidationFailed
from textmill_router.tasks.wishes import WritingWish

MAX_BEAMS, MAX_TOKENS = 8, 4096
LEAST_TIME_S = 0.001  # in which a model writes one token; 0 is no time on the wire
LEAST_PENALTY = 1e-6  # logits divided by less leave the range of 32-bit floats
# The least and the greatest value of each number.
_RANGES: Mapping[str, tuple[float, float]] = {
    "max_new_tokens": (1, MAX_TOKENS),
    "max_length": (1, MAX_TOKENS),
    "min_new_tokens": (0, MAX_TOKENS),
    "min_length": (0, MAX_TOKENS),
    "num_beams": (1, MAX_BEAMS),
    "length_penalty": (-100, 100),
    "no_repeat_ngram_size": (0, MAX_TOKENS),
    "temperature": (0, 100),
    "top_k": (0, MAX_I32),
    "top_p": (0, 1),
    "repetition_penalty": (0, 100),
    "max_time": (0, 120),
    "num_return_sequences": (1, 1),
}


class ImageGeneration(msgspec.Struct, gc=False):
    """Fields of transformers' GenerationConfig. Lengths are in tokens, `max_time` in seconds."""

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    max_time: float | None = None
    num_return_sequences: int | None = None


def writing_wish(*parts: ImageGeneration | None) -> WritingWish:
    """Return what the parts ask for, of which the later ones win. Raises ValidationFailed with the path of a field."""
    values = {
        name: value
        for part in parts
        if part is not None
        for name in ImageGeneration.__struct_fields__
        if (value := getattr(part, name)) is not None
    }
    for name, (low, high) in _RANGES.items():
        value = values.get(name)
        if value is not None and not low <= value <= high:
            raise _refusal(name, f"must be {low if low == high else f'{low} to {high}'}, found {shown_number(value)}")
    _check_small(values)
    _check_lengths(values, "max_new_tokens", "min_new_tokens")
    _check_lengths(values, "max_length", "min_length")
    samples = _samples(values)
    if samples and values.get("num_beams", 1) > 1:
        raise _refusal(
            "num_beams",
            "must be 1 where the call samples: leave out `do_sample`, `temperature`, `top_k` and `top_p`, or the beams",
        )
    if samples is False:  # numbers that change nothing, and a temperature of 0
        values = {name: value for name, value in values.items() if name not in ("temperature", "top_k", "top_p")}
    if values.get("repetition_penalty") == 0:
        values["repetition_penalty"] = 1.0
    values.pop("num_return_sequences", None)
    max_time_s = values.pop("max_time", None)
    if max_time_s is not None:
        values["max_time_s"] = max(max_time_s, LEAST_TIME_S)
    return WritingWish(**{**values, "do_sample": samples})


def _check_small(values: Mapping[str, float]) -> None:
    """Raise ValidationFailed for numbers above 0 that divide by nothing, or are nothing, in the floats of the wire."""
    top_p, penalty = values.get("top_p"), values.get("repetition_penalty")
    if top_p is not None and rounded32(top_p) == 0:
        raise _refusal("top_p", f"must be above 0 as a 32-bit number and at most 1, found {top_p:g}")
    if penalty and penalty < LEAST_PENALTY:
        raise _refusal("repetition_penalty", f"must be 0 (off), or {LEAST_PENALTY:g} to 100, found {penalty:g}")


def _samples(values: Mapping[str, float]) -> bool | None:
    """Return whether tokens are drawn; None: as the model's files say."""
    temperature, top_p = values.get("temperature"), values.get("top_p")
    is_greedy = temperature is not None and temperature < LEAST_TEMPERATURE
    asks = temperature not in (None, 1) or bool(values.get("top_k")) or top_p not in (None, 0, 1)
    said = values.get("do_sample")
    if is_greedy or said is False:
        return False
    return True if said or asks else None


def _check_lengths(values: Mapping[str, float], most: str, least: str) -> None:
    if most in values and least in values and values[least] > values[most]:
        raise _refusal(least, f"must be at most `{most}`, {values[most]}, found {values[least]}")


def _refusal(name: str, sentence: str) -> ValidationFailed:
    path = f"parameters.{name}"
    return ValidationFailed(f"`{path}` {sentence}", field=path)
