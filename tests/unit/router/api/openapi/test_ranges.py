"""The ranges and defaults in the document are those by which requests are checked."""

from typing import Any

import msgspec
import pytest
from textmill_router.api.openai.chat_types import ChatBody
from textmill_router.api.openai.completion_types import CompletionBody, requested_completion
from textmill_router.api.openai.types import requested_sampling
from textmill_router.api.platforms.kserve_types import V2Parameters, requested_v2
from textmill_router.api.route_table import openapi_document
from textmill_router.api.tgi.types import TgiParameters, requested_parameters
from textmill_router.errors import ValidationFailed
from textmill_router.serving.limits import Limits
from textmill_router.serving.validation import PARAMETER_BOUNDS, CheckedParameters, check_parameters

LIMITS = Limits(
    max_best_of=4,
    max_stop_sequences=4,
    max_top_n_tokens=2**32 - 1,
    max_input_tokens=2**32 - 1,
    max_total_tokens=2**34,
    vocab_size=9,
)
SCHEMAS = openapi_document()["components"]["schemas"]
BODIES: dict[str, Any] = {
    "ChatRequest": (ChatBody, {"messages": [], "seed": 1}, requested_sampling),
    "CompletionRequest": (CompletionBody, {"prompt": "x", "seed": 1}, requested_completion),
    "GenerateParameters": (TgiParameters, {"seed": 1}, lambda body: requested_parameters(body, streams=False)),
    "V2Parameters": (V2Parameters, {"seed": 1}, lambda body: requested_v2(body, streams=False)),
}
# Numbers that other code checks than the table's.
NOT_IN_TABLE = {
    "n",
    "best_of",
    "num_return_sequences",
    "max_time",
    "max_completion_tokens",
    "priority",
    "prompt_logprobs",
    "top_logprobs",
    "truncate_prompt_tokens",
}


def checked(body: str, **values: Any) -> CheckedParameters:
    """Return the parameters of a body. Raises ValidationFailed."""
    kind, needed, requested = BODIES[body]
    return check_parameters(requested(msgspec.convert({**needed, **values}, kind)), LIMITS)


def numbers() -> list[tuple[str, str, dict[str, Any], Any]]:
    """Body, name, the part of the schema with a range, and the default of each number of the document."""
    found = []
    for body in BODIES:
        for name, schema in SCHEMAS[body]["properties"].items():
            for part in schema.get("anyOf", []):
                if {"minimum", "exclusiveMinimum"} & set(part) and name not in NOT_IN_TABLE:
                    found.append((body, name, part, schema["default"]))
    return found


NUMBERS = numbers()
IDS = [f"{body}.{name}" for body, name, _, _ in NUMBERS]


def test_every_number_of_the_table_has_a_range() -> None:
    ranged = {(body, name) for body, name, _, _ in NUMBERS}
    for body, (kind, _, _) in BODIES.items():
        fields = {one.name for one in msgspec.structs.fields(kind)} - NOT_IN_TABLE
        assert {(body, row) for row in PARAMETER_BOUNDS if row in fields} <= ranged
    assert {("ChatRequest", "max_tokens"), ("CompletionRequest", "min_tokens")} <= ranged


@pytest.mark.parametrize(("body", "name", "part", "default"), NUMBERS, ids=IDS)
def test_edges_are_taken_and_what_lies_beyond_is_refused(
    body: str, name: str, part: dict[str, Any], default: Any
) -> None:
    step = 1 if part["type"] == "integer" else 1e-3
    for key, sign in (("minimum", -1), ("maximum", 1)):
        if key in part:
            checked(body, **{name: part[key]})
            with pytest.raises((ValidationFailed, msgspec.ValidationError)):
                checked(body, **{name: part[key] + sign * step})
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        if key in part:
            with pytest.raises(ValidationFailed):
                checked(body, **{name: part[key]})


@pytest.mark.parametrize(("body", "name", "part", "default"), NUMBERS, ids=IDS)
def test_default_changes_nothing(body: str, name: str, part: dict[str, Any], default: Any) -> None:
    if default is not None:
        assert checked(body, **{name: default}) == checked(body)
