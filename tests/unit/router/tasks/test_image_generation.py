"""Numbers of image-to-text are held to their ranges as the 32-bit floats that the shard reads."""

import pytest
from textmill_router.bounds import rounded32
from textmill_router.errors import ValidationFailed
from textmill_router.tasks.image_generation import ImageGeneration, writing_wish


@pytest.mark.parametrize("temperature", [0.0, 5e-46, 1e-300, 1e-40, 9e-7])
def test_a_temperature_that_draws_the_best_token_alone_is_greedy(temperature: float) -> None:
    wish = writing_wish(ImageGeneration(temperature=temperature, do_sample=True, top_k=5, top_p=0.5))
    assert wish.do_sample is False
    assert (wish.temperature, wish.top_k, wish.top_p) == (None, None, None)


def test_a_small_temperature_is_drawn_with() -> None:
    wish = writing_wish(ImageGeneration(temperature=1e-6))
    assert wish.do_sample is True
    assert wish.temperature is not None
    assert rounded32(wish.temperature) > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", 1e-300),
        ("top_p", 5e-46),
        ("top_p", 0.0),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 1e-40),
        ("top_k", 2**31),
        ("top_k", 2**32),
        ("top_k", 10**400),
        ("max_new_tokens", 10**400),
    ],
)
def test_a_number_that_the_wire_or_the_model_cannot_hold_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationFailed) as refused:
        writing_wish(ImageGeneration(**{name: value}))  # type: ignore[arg-type]
    assert refused.value.field == f"parameters.{name}"
    assert f"`parameters.{name}` must be" in str(refused.value)
    assert len(str(refused.value)) < 200


def test_penalties_of_0_and_1_are_off() -> None:
    assert writing_wish(ImageGeneration(repetition_penalty=0.0)).repetition_penalty == 1.0
    assert writing_wish(ImageGeneration(repetition_penalty=1.0)).repetition_penalty == 1.0
    assert writing_wish(ImageGeneration(top_k=2**31 - 1)).top_k == 2147483647
