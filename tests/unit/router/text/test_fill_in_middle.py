"""The tokens that a vocabulary has for a gap. `integration/test_fill_in_middle.py` tests the prompts made of them."""

from array import array

from textmill_router.text.fill_in_middle import find_middle_tokens

STARCODER = {"<fim_prefix>": 0, "<fim_suffix>": 1, "<fim_middle>": 2}


def test_vocabulary_without_all_the_tokens_has_none() -> None:
    for missing in STARCODER:
        assert find_middle_tokens({token: at for token, at in STARCODER.items() if token != missing}.get) is None


def test_own_tokens_and_those_that_the_vocabulary_has_end_the_middle() -> None:
    tokens = find_middle_tokens({**STARCODER, "<fim_pad>": 5, "<|fim_pad|>": 6}.get)
    assert tokens is not None
    assert tokens.end_ids == (0, 1, 2, 5)


def test_suffix_comes_first_where_the_model_was_taught_so() -> None:
    tokens = find_middle_tokens({"[PREFIX]": 7, "[SUFFIX]": 8}.get)
    assert tokens is not None
    assert list(tokens.join(array("I", [1]), array("I", [2]))) == [8, 2, 7, 1]
