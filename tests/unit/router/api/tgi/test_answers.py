"""Results as whole answers: the best of several sequences, and the words for its end."""

import pytest
from textmill_router.api.tgi.answers import FINISH_REASONS, whole_answer
from textmill_router.request import FinishReason, RequestId
from textmill_router.serving.logprobs import mean_logprob
from textmill_router.text.events import GenerationResult, TokenEvent


def make_result(text: str, logprobs: list[float]) -> GenerationResult:
    tokens = [TokenEvent(index, 65, "A", logprob, False, (), "A") for index, logprob in enumerate(logprobs, 1)]
    return GenerationResult(
        text=text,
        finish_reason=FinishReason.LENGTH,
        num_prompt_tokens=1,
        num_output_tokens=len(tokens),
        tokens=tokens,
        prompt_tokens=[],
        num_cached_tokens=0,
        queue_s=0.0,
        inference_s=0.0,
        first_token_s=0.0,
        request_id=RequestId(1),
    )


def test_the_best_by_mean_is_the_answer_and_the_others_follow_in_their_order() -> None:
    """By the sum the short sequence would be the best, and by the last token the worst."""
    results = [make_result("short", [-1.5]), make_result("long", [-0.5, -0.5, -1.0, -0.6]), make_result("bad", [-9.0])]
    assert [mean_logprob(result) for result in results] == pytest.approx([-1.5, -0.65, -9.0])
    answer = whole_answer(results, [1, 2, 3], prompt=">", wants_details=True, wants_top_tokens=False)
    assert answer.generated_text == ">long"
    assert answer.details
    assert (answer.details.seed, answer.details.generated_tokens) == (2, 4)
    others = answer.details.best_of_sequences
    assert others
    assert [(other.generated_text, other.seed) for other in others] == [(">short", 1), (">bad", 3)]


def test_ends_have_the_words_of_the_dialect() -> None:
    assert {reason.value: word for reason, word in FINISH_REASONS.items()} == {
        "length": "length",
        "eos": "eos_token",
        "stop_id": "eos_token",
        "stop_string": "stop_sequence",
    }


def test_sequence_that_time_ended_before_its_first_token_is_never_the_best() -> None:
    results = [make_result("", []), make_result("text", [-9.0])]
    assert max(results, key=mean_logprob) is results[1]
    answer = whole_answer(results, [1, 2], prompt="", wants_details=True, wants_top_tokens=False)
    assert answer.generated_text == "text"
    assert answer.details
    assert answer.details.best_of_sequences
    assert [other.seed for other in answer.details.best_of_sequences] == [1]
