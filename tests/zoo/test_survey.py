"""Types of models that the zoo does not list are served with the right logits, or refused with a reason."""

import re
from pathlib import Path

import pytest
import transformers

from tests.zoo.survey import Outcome, other_types, survey

PAGE = Path(__file__).parents[2] / "docs" / "other_models.md"


def outcomes_of_page() -> dict[str, str]:
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE))


def test_page_holds_every_type_that_transformers_knows() -> None:
    version = re.search(r"transformers ([\w.]+) and", PAGE.read_text())
    assert version is not None
    if version[1] != transformers.__version__:
        pytest.skip(f"the page was made with transformers {version[1]}, which knows other types")
    assert sorted(outcomes_of_page()) == other_types()


def test_no_type_is_served_with_wrong_logits_or_ends_in_a_crash() -> None:
    assert set(outcomes_of_page().values()) <= {
        word.value for word in (Outcome.SERVED, Outcome.REFUSED, Outcome.NOT_TRIED)
    }


@pytest.mark.parametrize(
    ("model_type", "outcome", "words"),
    [
        ("bert", Outcome.SERVED, "flat"),
        ("whisper", Outcome.SERVED, "flat"),  # its head always gives the logits of all tokens
        ("nemotron_h", Outcome.SERVED, "state"),  # has layers of experts, which keep no state
        ("gpt_neox_japanese", Outcome.REFUSED, "their code fails"),
        ("roberta", Outcome.REFUSED, "logits differ from those computed alone"),
        ("rwkv", Outcome.REFUSED, "only 0 keep keys and values"),
        ("deepseek_v32", Outcome.REFUSED, "passes indices, which this engine does not know"),
        ("recurrent_gemma", Outcome.REFUSED, "what the others keep is not known"),
        ("emu3", Outcome.REFUSED, "do not generate text"),
    ],
)
def test_outcome_of_a_type_of_each_kind(model_type: str, outcome: Outcome, words: str) -> None:
    verdict = survey(model_type)
    assert verdict.outcome is outcome, verdict
    assert words in verdict.words
    assert outcomes_of_page()[model_type] == outcome.value
