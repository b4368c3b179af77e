"""From checked parameters and a text to requests that the engine takes: tokens, budget, seeds."""

import time
from array import array
from dataclasses import dataclass

from textmill_router.request import GenerationRequest, SamplingParameters
from textmill_router.service import Backend
from textmill_router.validation import CheckedParameters, check_budget, check_text, prompt_too_long, with_drawn_seed


@dataclass(frozen=True, slots=True)
class Intake:
    """A prompt that fits, and how many tokens may follow it."""

    prompt_ids: "array[int]"
    max_new_tokens: int


async def take_prompt(
    backend: Backend, text: str, checked: CheckedParameters, *, add_special_tokens: bool = True
) -> Intake:
    """Tokenise, truncate to the last tokens, check the budget. Raises ValidationFailed."""
    check_text(text)
    limits = backend.limits
    if checked.truncate is None and backend.tokenizer.cannot_fit(text, limits.max_input_tokens):
        raise prompt_too_long(f"more than {limits.max_input_tokens}", limits)
    encoding = await backend.tokenizer.encode(text, add_special_tokens)
    prompt_ids = encoding.ids if checked.truncate is None else encoding.ids[-checked.truncate :]
    return Intake(prompt_ids, check_budget(len(prompt_ids), checked.max_new_tokens, limits))


def make_request(
    backend: Backend,
    intake: Intake,
    checked: CheckedParameters,
    sampling: SamplingParameters,
    *,
    wants_logprobs: bool,
    wants_prompt_logprobs: bool,
) -> GenerationRequest:
    """One sequence of the call."""
    return GenerationRequest(
        request_id=backend.engine.next_request_id(),
        prompt_ids=intake.prompt_ids,
        max_new_tokens=intake.max_new_tokens,
        arrival_s=time.monotonic(),
        sampling=sampling,
        min_new_tokens=min(checked.min_new_tokens, intake.max_new_tokens),
        ignore_eos=checked.ignore_eos,
        wants_logprobs=wants_logprobs,
        top_n_tokens=checked.top_n_tokens if wants_logprobs else 0,
        wants_prompt_logprobs=wants_prompt_logprobs,
    )


def samplings(checked: CheckedParameters) -> list[SamplingParameters]:
    """One way to sample for each sequence of the call: they differ in the seed."""
    further = [with_drawn_seed(checked.sampling) for _ in range(checked.best_of - 1)]
    return [checked.sampling, *further]
