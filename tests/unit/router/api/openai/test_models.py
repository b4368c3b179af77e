"""The owner of a model in the list of models."""

import pytest
from textmill_router.api.openai.models import owner_of


@pytest.mark.parametrize(
    ("model_id", "owner"),
    [
        ("org/model", "org"),
        ("model", "textmill"),
        ("/models/my-model", "textmill"),
        ("/my-model", "textmill"),
        ("./my-model", "textmill"),
        ("../my-model", "textmill"),
        ("~/my-model", "textmill"),
        ("models/org/name", "textmill"),
        ("org/", "textmill"),
    ],
)
def test_owner_is_the_first_part_of_a_hub_id(model_id: str, owner: str) -> None:
    assert owner_of(model_id) == owner
