"""The work for a prompt of /v1/completions that is refused. `contract/test_completions.py` tests the others."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from textmill_router.api.openai.completion_prompts import take_completion_prompt
from textmill_router.api.openai.completion_types import PromptSource
from textmill_router.errors import OverBudget
from textmill_router.request import token_array
from textmill_router.serving.limits import Limits
from textmill_router.serving.validation import RequestedParameters, check_parameters

LIMITS = Limits(
    max_best_of=1,
    max_stop_sequences=1,
    max_top_n_tokens=1,
    max_input_tokens=10,
    max_total_tokens=20,
    vocab_size=100,
)


def test_ids_that_do_not_fit_are_not_spelt_out() -> None:
    backend: Any = SimpleNamespace(limits=LIMITS, tokenizer=None, images=None)  # no method of it may be called
    source = PromptSource("prompt", ids=token_array([1] * 11))
    with pytest.raises(OverBudget, match="11 tokens"):
        asyncio.run(
            take_completion_prompt(
                backend,
                source,
                check_parameters(RequestedParameters(), LIMITS),
                wants_offsets=False,
                add_special_tokens=True,
                cache_salt=b"",
            )
        )
