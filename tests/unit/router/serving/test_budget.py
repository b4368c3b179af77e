"""How many tokens a prompt may have and how many may follow, with limits small enough to check by eye."""

from dataclasses import replace

import pytest
from textmill_router.errors import OverBudget
from textmill_router.serving.budget import check_budget
from textmill_router.serving.limits import Limits

LIMITS = Limits(
    max_best_of=3,
    max_stop_sequences=2,
    max_top_n_tokens=5,
    max_input_tokens=3000,
    max_total_tokens=4096,
    vocab_size=100,
)


@pytest.mark.parametrize(
    ("num_prompt_tokens", "max_new_tokens", "granted"),
    [
        (1, 10, 10),
        (3000, 1024, 1024),
        (3000, 1096, 1096),
        (3000, 5000, 1096),  # 3000 + 1024 fit, so it passes and ends when the window is full
        (100, None, 3996),
        (3000, None, 1096),
    ],
)
def test_budget_grants_up_to_the_window(num_prompt_tokens: int, max_new_tokens: int | None, granted: int) -> None:
    assert check_budget(num_prompt_tokens, max_new_tokens, LIMITS) == granted


@pytest.mark.parametrize(
    ("num_prompt_tokens", "max_new_tokens", "max_tokens"),
    [
        (3001, 10, 3000),  # prompt too long
        (3001, None, 3000),
        (3900, 300, 4096),  # the prompt is too long, but the total is checked first
        (4097, None, 4096),
        (4096, 1, 4096),
    ],
)
def test_budget_over_the_window_is_refused(num_prompt_tokens: int, max_new_tokens: int | None, max_tokens: int) -> None:
    with pytest.raises(OverBudget) as caught:
        check_budget(num_prompt_tokens, max_new_tokens, LIMITS)
    assert caught.value.max_tokens == max_tokens
    assert "`inputs` tokens + `max_new_tokens` must be <= 4096" in str(caught.value)
    assert str(num_prompt_tokens) in str(caught.value)


def test_checked_slice_is_1024_tokens() -> None:
    narrow = Limits(
        max_best_of=1,
        max_stop_sequences=1,
        max_top_n_tokens=1,
        max_input_tokens=3500,
        max_total_tokens=4096,
        vocab_size=9,
    )
    assert check_budget(3072, 100_000, narrow) == 1024
    with pytest.raises(OverBudget):
        check_budget(3073, 100_000, narrow)


def test_the_positions_of_a_decoder_bound_the_output_alone() -> None:
    limits = replace(LIMITS, max_output_tokens=500)
    assert check_budget(3000, None, limits) == 500
    assert check_budget(3000, 500, limits) == 500
    with pytest.raises(OverBudget, match=r"`max_new_tokens` must be <= 500 .*found 501") as caught:
        check_budget(10, 501, limits)
    assert caught.value.field == "max_new_tokens"
    assert check_budget(10, 5000, replace(LIMITS, max_output_tokens=1500)) == 1500  # passes, because 1024 fit


@pytest.mark.parametrize(("num_prompt_tokens", "max_new_tokens"), [(4096, 1), (4097, None), (3001, 1), (10, 501)])
def test_a_refusal_has_the_names_of_the_dialect_alone(num_prompt_tokens: int, max_new_tokens: int | None) -> None:
    with pytest.raises(OverBudget) as caught:
        check_budget(num_prompt_tokens, max_new_tokens, replace(LIMITS, max_output_tokens=500))
    error = caught.value
    native = str(error)
    names = {"max_new_tokens": "length", "inputs": "story", "truncate": "cut"}
    error.reword(names)
    renamed = str(error)
    assert "`length`" in renamed
    assert error.field in ("length", "story")
    for name, other in names.items():
        assert f"`{name}`" not in renamed
        assert renamed.count(f"`{other}`") == native.count(f"`{name}`")
    error.reword(names, f"{{window_tokens}}: {error.found}")
    assert str(error).startswith("4096: ")
    assert "{" not in str(error)
