"""Fill-in-the-middle prompts in the published orders."""

import pytest
from textmill_router.api.fill_in_middle import find_middle_tokens


@pytest.mark.parametrize(
    ("vocabulary", "prompt"),
    [
        (["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"], "<|fim_prefix|>A<|fim_suffix|>B<|fim_middle|>"),
        (["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], "<fim_prefix>A<fim_suffix>B<fim_middle>"),
        (["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"], "<｜fim▁begin｜>A<｜fim▁hole｜>B<｜fim▁end｜>"),
        (["[PREFIX]", "[SUFFIX]"], "[SUFFIX]B[PREFIX]A"),
    ],
)
def test_prompt_has_the_order_that_the_model_was_taught(vocabulary: list[str], prompt: str) -> None:
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokens = find_middle_tokens(ids.get)
    assert tokens is not None
    assert tokens.join("A", "B") == prompt


def test_vocabulary_without_all_the_tokens_has_none() -> None:
    assert find_middle_tokens({"<fim_prefix>": 0, "<fim_middle>": 1}.get) is None
