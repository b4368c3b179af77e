"""`prompt_logprobs` of vLLM: the log-probability of each token of the prompt, and of the most probable ones there."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from textmill_router.api.openai.types import OpenAIBody, finite_logprob
from textmill_router.errors import ValidationFailed
from textmill_router.request import GenerationRequest
from textmill_router.serving.service import Backend
from textmill_router.text.events import PromptToken

MAX_ALTERNATIVES = 20
_NAME = "prompt_logprobs"


class PromptLogprob(msgspec.Struct, frozen=True, gc=False):
    """One token at one place of the prompt. `rank` is 1 for the most probable, and null where nobody has counted."""

    logprob: float
    rank: int | None
    decoded_token: str


# One entry per token of the prompt, by token id; null for the first token, which follows nothing.
PromptLogprobs = list[dict[str, PromptLogprob] | None]


def check_prompt_logprobs(body: OpenAIBody, backend: Backend) -> None:
    """Raise ValidationFailed where the field is out of range, or where the call cannot show what it asks for."""
    count = body.prompt_logprobs
    if count is None:
        return
    if not 0 <= count <= MAX_ALTERNATIVES:
        raise ValidationFailed(f"`{_NAME}` must be 0 to {MAX_ALTERNATIVES}, found {count}", field=_NAME)
    if body.stream:
        raise ValidationFailed(f"`{_NAME}` must not be set when streaming; leave it out or do not stream", field=_NAME)
    if backend.facts.has_encoder:
        raise ValidationFailed(
            f"`{_NAME}` must not be set: this model reads prompts with an encoder, which rates no tokens", field=_NAME
        )


def with_prompt_logprobs(body: OpenAIBody, requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
    """Return the sequences of one prompt, of which the first rates the tokens of the prompt if the body asks for it."""
    if body.prompt_logprobs is None:
        return list(requests)
    first, *others = requests
    rated = replace(first, wants_prompt_logprobs=True, prompt_top_n_tokens=body.prompt_logprobs)
    return [rated, *others]


def shown_prompt_logprobs(tokens: Sequence[PromptToken], num_alternatives: int) -> PromptLogprobs:
    """Return the entries as vLLM has them: at each place the token of the prompt, and then the alternatives."""
    return [_entry(token, num_alternatives) for token in tokens]


def _entry(token: PromptToken, num_alternatives: int) -> dict[str, PromptLogprob] | None:
    if token.logprob is None:
        return None
    ranks = {other.id: rank for rank, other in enumerate(token.top_tokens, 1)}
    entry = {str(token.id): PromptLogprob(finite_logprob(token.logprob), ranks.get(token.id), token.text)}
    for other in token.top_tokens[:num_alternatives]:  # tokens that tie with the last one are left out
        entry.setdefault(str(other.id), PromptLogprob(finite_logprob(other.logprob), ranks[other.id], other.text))
    return entry
