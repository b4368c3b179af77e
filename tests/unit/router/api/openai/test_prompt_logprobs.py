"""The entries of `prompt_logprobs`, from tokens written by hand."""

import math

from textmill_router.api.openai.prompt_logprobs import PromptLogprob, shown_prompt_logprobs
from textmill_router.text.events import PromptToken, TopToken


def top(token_id: int, logprob: float) -> TopToken:
    return TopToken(token_id, f"t{token_id}", logprob, False)


TOKENS = [
    PromptToken(1, "a", None),
    PromptToken(2, "b", -2.0, (top(5, -0.5), top(2, -2.0), top(7, -2.0))),  # 7 ties with 2
    PromptToken(3, "c", -9.0, (top(5, -0.25), top(6, -1.5))),
    PromptToken(4, "d", -math.inf),
]


def test_token_of_the_prompt_comes_first_and_ranks_count_from_one() -> None:
    first, second, third, fourth = shown_prompt_logprobs(TOKENS, 2)
    assert first is None
    assert second == {"2": PromptLogprob(-2.0, 2, "b"), "5": PromptLogprob(-0.5, 1, "t5")}
    assert second is not None
    assert list(second) == ["2", "5"]
    assert third == {
        "3": PromptLogprob(-9.0, None, "c"),
        "5": PromptLogprob(-0.25, 1, "t5"),
        "6": PromptLogprob(-1.5, 2, "t6"),
    }
    assert fourth == {"4": PromptLogprob(-9999.0, None, "d")}


def test_without_alternatives_each_token_stands_alone() -> None:
    assert [entry and list(entry) for entry in shown_prompt_logprobs(TOKENS, 0)] == [None, ["2"], ["3"], ["4"]]
