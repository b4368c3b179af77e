"""The ranges and the defaults of numbers in `/openapi.json`, from the table by which requests are checked."""

import math
from collections.abc import Mapping
from typing import Any

from textmill_router.api.openai.chat_types import CHAT_NAMES
from textmill_router.api.openai.completion_types import COMPLETION_BOUNDS, COMPLETION_NAMES
from textmill_router.api.openai.prompt_logprobs import MAX_ALTERNATIVES
from textmill_router.api.openai.types import OPENAI_BOUNDS
from textmill_router.api.tgi.writing_wish import MAX_BEAMS, MAX_LENGTH_PENALTY, WRITING_RANGES
from textmill_router.bounds import Bounds
from textmill_router.http.key_file import MAX_PRIORITY, MIN_PRIORITY
from textmill_router.serving.validation import PARAMETER_BOUNDS, SIGNED_SEED

# For each body with numbers of the table: the names that differ from the table's, and the ranges that differ.
_OPENAI = {**OPENAI_BOUNDS, "seed": SIGNED_SEED}
_BODIES: Mapping[str, tuple[Mapping[str, str], Mapping[str, Bounds]]] = {
    "ChatBody": (CHAT_NAMES, _OPENAI),
    "CompletionBody": (COMPLETION_NAMES, {**_OPENAI, **COMPLETION_BOUNDS}),
    "TgiParameters": ({}, {}),
    "CompatParameters": ({}, {}),
    "V2Parameters": ({}, {}),
}
# Without `logprobs` a completion has none, so 0 alternatives are no default.
_WITHOUT_DEFAULT = frozenset({("CompletionBody", "logprobs")})
# Numbers whose checks stand outside of the table. An API key may narrow the range of `priority`.
_PRIORITY = {"minimum": MIN_PRIORITY, "maximum": MAX_PRIORITY}
_TGI: Mapping[str, Mapping[str, float]] = {
    "best_of": {"minimum": 1},
    "max_time": {"exclusiveMinimum": 0},
    "num_return_sequences": {"minimum": 1},
    "priority": _PRIORITY,
}
_OTHERS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "ChatBody": {
        "max_completion_tokens": {"minimum": 1},
        "n": {"minimum": 1},
        "priority": _PRIORITY,
        "prompt_logprobs": {"minimum": 0, "maximum": MAX_ALTERNATIVES},
        "top_logprobs": {"maximum": 20},
        "truncate_prompt_tokens": {"minimum": -1},
    },
    "CompletionBody": {
        "best_of": {"minimum": 1},
        "n": {"minimum": 1},
        "priority": _PRIORITY,
        "prompt_logprobs": {"minimum": 0, "maximum": MAX_ALTERNATIVES},
        "truncate_prompt_tokens": {"minimum": -1},
    },
    "TgiParameters": _TGI,
    "CompatParameters": {
        **_TGI,
        "encoder_no_repeat_ngram_size": {"minimum": 0},
        "length_penalty": {"minimum": -MAX_LENGTH_PENALTY, "maximum": MAX_LENGTH_PENALTY},
        "max_length": {"minimum": 1},
        "min_length": {"minimum": 0},
        "no_repeat_ngram_size": {"minimum": 0},
        "num_beams": {"minimum": 1, "maximum": MAX_BEAMS},
    },
    "V2Parameters": {
        "max_time": {"exclusiveMinimum": 0},
        "max_tokens": {"minimum": 1},
        "priority": _PRIORITY,
    },
}
# The bodies of the writing tasks have ranges of their own. For these numbers the table has the narrower rule.
_WRITING = ("WritingParameters", "WritingFields")
_NARROWER = ("top_p", "typical_p")


def add_ranges(components: dict[str, Any]) -> None:
    """Put minimum, maximum and default into the schemas of the numbers. A default is a value that changes nothing."""
    for body, (names, others) in _BODIES.items():
        if body not in components:
            continue
        properties = components[body]["properties"]
        for row, bounds in PARAMETER_BOUNDS.items():
            name = names.get(row, row)
            if name not in properties:
                continue
            schema = properties[name]
            _number_of(schema).update(_edges(others.get(row, bounds)))
            if bounds.off is not None and bounds.off >= bounds.low and (body, name) not in _WITHOUT_DEFAULT:
                schema["default"] = bounds.off
        for name, edges in _OTHERS[body].items():
            _number_of(properties[name]).update(edges)
    for body in components.keys() & set(_WRITING):
        properties = components[body]["properties"]
        for name, (low, high) in WRITING_RANGES.items():
            _number_of(properties[name]).update(minimum=low, maximum=high)
        for name in _NARROWER:
            number = _number_of(properties[name])
            number.pop("minimum", None)
            number.update(_edges(PARAMETER_BOUNDS[name]))


def _number_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a nullable field's schema that stands for the number."""
    part: dict[str, Any] = next(one for one in schema["anyOf"] if one["type"] in ("integer", "number"))
    return part


def _edges(bounds: Bounds) -> dict[str, float]:
    edges = {"exclusiveMinimum" if bounds.excludes_low else "minimum": bounds.low}
    if not math.isinf(bounds.high):
        edges["exclusiveMaximum" if bounds.excludes_high else "maximum"] = bounds.high
    return edges
