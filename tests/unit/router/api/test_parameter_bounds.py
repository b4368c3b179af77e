"""Each number of the table of parameters is taken up to its edge and refused beyond, in each dialect that has it."""

import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import pytest
from textmill_router.api.openai.chat_types import CHAT_NAMES, ChatBody
from textmill_router.api.openai.completion_types import COMPLETION_NAMES, CompletionBody, requested_completion
from textmill_router.api.openai.types import requested_sampling
from textmill_router.api.tgi.types import TgiParameters, requested_parameters
from textmill_router.errors import ValidationFailed
from textmill_router.serving.limits import Limits
from textmill_router.serving.validation import PARAMETER_BOUNDS, RequestedParameters, check_parameters

LIMITS = Limits(
    max_best_of=3,
    max_stop_sequences=2,
    max_top_n_tokens=5,
    max_input_tokens=3000,
    max_total_tokens=4096,
    vocab_size=100,
)
MAX_I32, MAX_U32, MAX_U64 = 2147483647, 4294967295, 18446744073709551615
MIN_I64 = -9223372036854775808
LARGEST_FLOAT = 3.4028234e38  # the largest float of 32 bits
TINY = 1e-30  # more than 0 in 32 bits
BELOW_ONE = 1.0 - 2**-24  # the largest float of 32 bits below 1

# Values at the edges, from the published ranges: a list of values that are taken and a list of values refused.
EDGES: dict[str, tuple[list[float], list[float]]] = {
    "temperature": ([0.0, TINY, LARGEST_FLOAT], [-TINY, 3.5e38, math.inf, math.nan]),
    "repetition_penalty": ([TINY, LARGEST_FLOAT], [0.0, 1e-60, -TINY, 3.5e38, math.nan]),
    "frequency_penalty": ([-2.0, 2.0], [math.nextafter(-2.0, -3.0), math.nextafter(2.0, 3.0)]),
    "presence_penalty": ([-2.0, 2.0], [math.nextafter(-2.0, -3.0), math.nextafter(2.0, 3.0)]),
    "top_p": ([TINY, 1.0], [0.0, -TINY, math.nextafter(1.0, 2.0)]),
    "typical_p": ([TINY, 1.0], [0.0, -TINY, math.nextafter(1.0, 2.0)]),
    "top_k": ([1, MAX_I32], [0, -1, -2, MAX_I32 + 1, MAX_U32]),
    "min_p": ([0.0, BELOW_ONE], [-TINY, 1.0 - 2**-25, math.nextafter(1.0, 0.0), 1.0]),
    "dry_multiplier": ([0.0, TINY, 100.0], [-TINY, math.nextafter(100.0, 101.0), math.nan]),
    "dry_base": ([1.0, LARGEST_FLOAT], [math.nextafter(1.0, 0.0), 0.0, 3.5e38, math.inf]),
    "dry_allowed_length": ([1, MAX_U32], [0, -1, MAX_U32 + 1]),
    "max_new_tokens": ([1, MAX_U32], [0, -1, MAX_U32 + 1]),
    "min_new_tokens": ([0, MAX_U32], [-1, MAX_U32 + 1]),
    "seed": ([0, MAX_U64], [-1, MIN_I64 - 1, MAX_U64 + 1]),
    "top_n_tokens": ([0, 5], [-1, 6]),
    "truncate": ([1, 3000], [0, 3001]),
}


class Dialect(NamedTuple):
    """A body type of a dialect, and the function that reads its parameters."""

    body: type[Any]
    needed: dict[str, Any]
    names: Mapping[str, str]
    requested: Callable[[Any], RequestedParameters]
    taken: dict[str, list[float]]  # values beyond the edges that this dialect takes with a meaning of its own


# OpenAI's schema: `seed` is a signed 64-bit integer, `top_p` is 0 to 1. `top_k` is off at 0 and -1, as in vLLM.
OPENAI_MEANINGS: dict[str, list[float]] = {"top_k": [0, -1], "seed": [-1, MIN_I64], "top_p": [0.0]}
DIALECTS = {
    "native": Dialect(TgiParameters, {}, {}, lambda body: requested_parameters(body, streams=False), {}),
    "chat": Dialect(ChatBody, {"messages": []}, CHAT_NAMES, requested_sampling, OPENAI_MEANINGS),
    "completions": Dialect(
        CompletionBody,
        {"prompt": "x"},
        COMPLETION_NAMES,
        requested_completion,
        {**OPENAI_MEANINGS, "repetition_penalty": [0.0], "max_new_tokens": [0]},
    ),
}
CASES = [
    (dialect, name)
    for dialect, how in DIALECTS.items()
    for name in PARAMETER_BOUNDS
    if how.names.get(name, name) in how.body.__struct_fields__
]


def test_each_row_of_the_table_has_its_edges_here() -> None:
    assert set(EDGES) == set(PARAMETER_BOUNDS)


@pytest.mark.parametrize(("dialect", "name"), CASES)
def test_edges_are_taken_and_what_lies_beyond_is_refused(dialect: str, name: str) -> None:
    how = DIALECTS[dialect]
    inside, outside = EDGES[name]

    def check(value: float) -> None:
        field = how.names.get(name, name)
        body = how.body(**how.needed, **{field: value})
        check_parameters(how.requested(body), LIMITS)

    for value in [*inside, *how.taken.get(name, [])]:
        check(value)
    for value in outside:
        if value not in how.taken.get(name, []):
            with pytest.raises(ValidationFailed) as refused:
                check(value)
            assert refused.value.field == name, value
            assert f"{value:g}" in str(refused.value) or f"{value}" in str(refused.value) or abs(value) < TINY


@pytest.mark.parametrize(("dialect", "name"), CASES)
def test_bodies_take_whole_numbers_where_the_row_wants_them(dialect: str, name: str) -> None:
    how = DIALECTS[dialect]
    field = how.names.get(name, name)
    (kind,) = (one.type for one in msgspec.structs.fields(how.body) if one.name == field)
    assert kind == (int | None if PARAMETER_BOUNDS[name].is_whole else float | None)


@pytest.mark.parametrize("dialect", ["chat", "completions"])
def test_each_seed_of_openai_is_a_seed_of_its_own(dialect: str) -> None:
    how = DIALECTS[dialect]

    def seed_of(seed: int) -> int:
        body = how.body(**how.needed, seed=seed)
        return check_parameters(how.requested(body), LIMITS).generation.sampling.seed

    edges = [MIN_I64, -2, -1, 0, 1, -MIN_I64 - 1]
    assert [seed_of(seed) for seed in edges] == [2**63, 2**64 - 2, 2**64 - 1, 0, 1, 2**63 - 1]  # two's complement


@pytest.mark.parametrize("dialect", ["chat", "completions"])
def test_top_p_of_nothing_is_a_share_of_the_best_token_alone(dialect: str) -> None:
    how = DIALECTS[dialect]
    checked = check_parameters(how.requested(how.body(**how.needed, top_p=0.0)), LIMITS)
    assert 0 < array("f", [checked.generation.sampling.top_p])[0] < 1e-9  # on the wire; no best token has less


def test_the_limits_of_a_server_are_the_edges_where_it_has_some() -> None:
    wider = replace(LIMITS, max_top_n_tokens=7, max_input_tokens=9)
    check_parameters(RequestedParameters(numbers={"top_n_tokens": 7, "truncate": 9}), wider)
    for name, value in (("top_n_tokens", 8), ("truncate", 10)):
        with pytest.raises(ValidationFailed, match=f"to {value - 1}, found {value}"):
            check_parameters(RequestedParameters(numbers={name: value}), wider)
