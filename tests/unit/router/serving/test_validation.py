"""The rules of parameters and budget, with limits small enough to check by eye."""

import math
from typing import Any

import pytest
from textmill_router.errors import ValidationFailed
from textmill_router.serving.limits import Limits
from textmill_router.serving.validation import (
    PARAMETER_BOUNDS,
    SEED_BITS,
    RequestedParameters,
    check_parameters,
    check_text,
    draw_seed,
    with_drawn_seed,
)

LIMITS = Limits(
    max_best_of=3,
    max_stop_sequences=2,
    max_top_n_tokens=5,
    max_input_tokens=3000,
    max_total_tokens=4096,
    vocab_size=100,
)


def check(**requested: Any) -> Any:
    numbers = {name: requested.pop(name) for name in tuple(requested) if name in PARAMETER_BOUNDS}
    return check_parameters(RequestedParameters(numbers=numbers, **requested), LIMITS)


@pytest.mark.parametrize(
    ("requested", "field"),
    [
        ({"streams": True, "best_of": 2}, "best_of"),
        ({"streams": True, "best_of": 0}, "best_of"),
        ({"streams": True, "wants_prompt_details": True}, "decoder_input_details"),
        ({"best_of": 4, "do_sample": True}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": -1}, "best_of"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "temperature": 0.0, "do_sample": True}, "best_of"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": 1e39}, "temperature"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": -1.0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-60}, "repetition_penalty"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": -0.5}, "top_p"),
        ({"typical_p": 0.0}, "typical_p"),
        ({"typical_p": 1.5}, "typical_p"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2**32}, "top_k"),
        ({"min_p": 1.0}, "min_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": 2**32}, "max_new_tokens"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens"),
        ({"stop": ("a", "b", "c")}, "stop"),
        ({"stop": ("a", "")}, "stop"),
        ({"best_of": 2, "do_sample": True, "seed": 7}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"top_n_tokens": 6}, "top_n_tokens"),
        ({"top_n_tokens": -1}, "top_n_tokens"),
        ({"logit_bias": ((100, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((1, 101.0),)}, "logit_bias"),
        ({"truncate": 0}, "truncate"),
        ({"truncate": 3001}, "truncate"),
    ],
)
def test_broken_rule_is_refused_with_its_field(requested: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        check(**requested)
    assert caught.value.field == field
    assert f"`{field}`" in str(caught.value)


@pytest.mark.parametrize(
    "requested",
    [
        {"best_of": 3, "do_sample": True},
        {"best_of": 2, "temperature": 0.7},
        {"best_of": 2, "top_k": 5},
        {"best_of": 2, "top_p": 1.0},
        {"streams": True, "best_of": 1},
        {"temperature": 50.0},
        {"frequency_penalty": -2.0},
        {"top_p": 1.0},
        {"typical_p": 1.0},
        {"stop": ("a", "b")},
        {"seed": 2**64 - 1},
        {"top_n_tokens": 5},
        {"truncate": 3000},
        {"max_new_tokens": 1},
        {"logit_bias": ((99, -100.0), (0, 100.0))},
    ],
)
def test_values_at_the_edge_are_taken(requested: dict[str, Any]) -> None:
    check(**requested)


def test_first_broken_rule_wins() -> None:
    with pytest.raises(ValidationFailed) as caught:
        check(top_k=0, temperature=-1.0, stop=("",), best_of=9)
    assert caught.value.field == "best_of"
    with pytest.raises(ValidationFailed) as caught:
        check(top_k=0, temperature=-1.0, stop=("",))
    assert caught.value.field == "temperature"


@pytest.mark.parametrize(
    "requested", [{"do_sample": True}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"typical_p": 0.5}]
)
def test_each_sampling_parameter_turns_sampling_on(requested: dict[str, Any]) -> None:
    assert check(**requested).generation.sampling.do_sample


@pytest.mark.parametrize(
    "requested",
    [
        {},
        {"temperature": 1.0},
        {"top_p": 1.0},
        {"typical_p": 1.0},
        {"do_sample": True, "temperature": 0.0},
        {"top_k": 3, "temperature": 0.0},
        {"do_sample": True, "temperature": 1e-9},
        {"repetition_penalty": 1.2},
    ],
)
def test_greedy_otherwise(requested: dict[str, Any]) -> None:
    sampling = check(**requested).generation.sampling
    assert not sampling.do_sample
    assert sampling.temperature == 1.0


def test_absent_parameters_are_off() -> None:
    sampling = check().generation.sampling
    assert (sampling.top_k, sampling.top_p, sampling.typical_p, sampling.min_p) == (0, 1.0, 1.0, 0.0)
    assert (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (1.0, 0.0, 0.0)


def test_seed_is_kept_or_drawn_anew_each_time() -> None:
    assert check(do_sample=True, seed=2**63 + 1).generation.sampling.seed == 2**63 + 1
    drawn = {check(do_sample=True).generation.sampling.seed for _ in range(20)}
    assert len(drawn) == 20
    assert all(0 <= seed < 2**SEED_BITS for seed in drawn)
    first = check(do_sample=True).generation
    assert with_drawn_seed(first).sampling.seed != first.sampling.seed


def test_drawn_seeds_survive_clients_that_read_numbers_as_doubles() -> None:
    seeds = [draw_seed() for _ in range(100)]
    assert all(seed == int(float(seed)) and 0 <= seed < 2**53 for seed in seeds)
    assert len(set(seeds)) == 100


def test_empty_text_is_refused() -> None:
    check_text(" ")
    with pytest.raises(ValidationFailed, match="inputs"):
        check_text("")
