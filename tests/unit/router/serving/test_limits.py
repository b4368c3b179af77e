"""The token limits of a model that reads a prompt in one step, and of a decoder that has positions of its own."""

from typing import Any

import pytest
from textmill_router.serving.limits import Limits, max_whole_tokens, resolve_limits
from textmill_router.serving.prompt_images import media_bounds
from textmill_router.settings import Settings, SettingsError

from tests.fakes.router_facts import router_facts


class Pool:
    """A stand-in for the engine, with a KV cache of so many tokens."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def can_ever_fit(self, num_tokens: int) -> bool:
        return num_tokens <= self._num_tokens


def limits(settings: dict[str, Any] | None = None, *, pool: int = 400, **info: Any) -> Limits:
    """Return the limits with blocks of 16 tokens, steps of 100, 8 slots, and two first tokens of the decoder."""
    encoder = {
        "block_size": 16,
        "num_blocks": 100,
        "num_slots": 8,
        "max_step_tokens": 100,
        "decoder_prompt_ids": [1, 2],
    }
    facts = router_facts(**{**encoder, **info})
    chosen = Settings(model_dir="m", model_id="m", shard_uds_path=("s",), **(settings or {}))
    return resolve_limits(chosen, facts, Pool(pool))  # type: ignore[arg-type]


def test_a_prompt_fits_one_step_beside_a_token_of_every_slot() -> None:
    found = limits()
    assert (found.max_input_tokens, found.max_total_tokens, found.max_output_tokens) == (92, 398, None)
    assert "one step" in found.input_limit
    assert limits({"max_batch_prefill_tokens": 50}).max_input_tokens == 50


def test_positions_bound_prompt_and_output_apart() -> None:
    found = limits(max_encoder_tokens=40, max_model_tokens=30)
    assert (found.max_input_tokens, found.max_total_tokens, found.max_output_tokens) == (40, 68, 28)
    assert "positions of the encoder" in found.input_limit


def test_a_small_pool_bounds_both_together() -> None:
    found = limits(pool=34, max_encoder_tokens=40, max_model_tokens=30)
    assert (found.max_input_tokens, found.max_total_tokens, found.max_output_tokens) == (31, 32, 28)


def test_what_the_operator_asks_for_counts_when_it_is_possible() -> None:
    found = limits({"max_input_tokens": 20, "max_total_tokens": 60})
    assert (found.max_input_tokens, found.max_total_tokens, found.input_limit) == (20, 60, "--max-input-tokens")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_input_tokens": 93}, "--max-input-tokens is 93, wanted at most 92 .*one step"),
        ({"max_total_tokens": 69}, "--max-total-tokens is 69, wanted at most 68: .*positions end at 68"),
    ],
)
def test_what_is_not_possible_stops_the_start(settings: dict[str, Any], words: str) -> None:
    positions = {"max_encoder_tokens": 40, "max_model_tokens": 30} if "max_total_tokens" in settings else {}
    with pytest.raises(SettingsError, match=words):
        limits(settings, **positions)


def test_slots_that_fill_a_step_leave_no_room_for_a_prompt() -> None:
    with pytest.raises(SettingsError, match="no room for a prompt"):
        limits(num_slots=100)


def test_a_prompt_whose_tokens_see_one_another_fits_one_step_too() -> None:
    whole = {"decoder_prompt_ids": [], "uncut_prompts": True}
    found = limits(**whole)
    assert (found.max_input_tokens, found.max_total_tokens) == (92, 400)
    assert "this model reads a prompt in one step" in found.input_limit
    with pytest.raises(SettingsError, match="--max-input-tokens is 93, wanted at most 92"):
        limits({"max_input_tokens": 93}, **whole)
    assert limits(decoder_prompt_ids=[], uncut_spans=True).max_input_tokens == 399


def test_an_image_that_is_not_cut_leaves_a_token_for_every_slot() -> None:
    facts = router_facts(num_slots=8, max_step_tokens=100, uncut_spans=True)
    settings = Settings(model_dir="m", model_id="m", shard_uds_path=("s",))
    bounds = media_bounds(facts, max_whole_tokens(settings, facts))
    assert (bounds.max_span_tokens, bounds.max_prompt_tokens) == (92, 0)
