"""The body of a completion call. A field that is `null` counts as absent, and unknown fields are ignored."""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from textmill_router.api.openai.answer_grammar import answer_grammar
from textmill_router.api.openai.types import OpenAIBody, requested_sampling
from textmill_router.bounds import MAX_U32, Bounds
from textmill_router.errors import TooManyPrompts, ValidationFailed
from textmill_router.request import token_array
from textmill_router.serving.validation import RequestedParameters

# Fields that have another name in TGI's dialect, by that name.
COMPLETION_NAMES: Mapping[str, str] = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "top_n_tokens": "logprobs",
    "inputs": "prompt",
}


# Numbers of which this route takes 0 too.
COMPLETION_BOUNDS = {
    "repetition_penalty": Bounds(low=0, high=math.inf, is_whole=False, note="0 and 1 are off"),  # TGI's example has 0
    "max_new_tokens": Bounds(low=0, high=MAX_U32, note="0 with `echo`"),
}


class CompletionBody(OpenAIBody, frozen=True, kw_only=True):
    """The body of /v1/completions. The last block has TGI's parameters, which @huggingface/inference sends here."""

    prompt: str | list[str | int | list[int]]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None

    adapter_id: str | None = None
    return_full_text: bool | None = None
    truncate: int | None = None
    watermark: bool | None = None

    @property
    def names(self) -> Mapping[str, str]:
        return COMPLETION_NAMES

    @property
    def echoes(self) -> bool:
        return bool(self.return_full_text if self.echo is None else self.echo)

    @property
    def has_output(self) -> bool:
        return self.max_tokens != 0

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None


def requested_completion(body: CompletionBody) -> RequestedParameters:
    """Return the parameters of a body in the form that all dialects share.

    Raises ValidationFailed for a grammar of no known shape and for numbers beyond their range.
    """
    if body.truncate is not None and body.truncate_prompt_tokens is not None:
        raise _refuse("truncate", "and `truncate_prompt_tokens` exclude each other; leave one out")
    requested = requested_sampling(body)
    grammar = answer_grammar(body)
    numbers = dict(requested.numbers)
    for name, row in COMPLETION_BOUNDS.items():
        row.check(name, numbers.get(name))
    if body.repetition_penalty == 0:
        del numbers["repetition_penalty"]
    if not body.has_output:
        numbers["max_new_tokens"] = 1  # the engine computes a prompt only for a further token, which is not shown
    return replace(
        requested,
        numbers=numbers,
        grammar=None if grammar is None else grammar.grammar,
        watermark=body.watermark or False,
    )


@dataclass(frozen=True, slots=True)
class PromptSource:
    """One prompt of a body: a text, or token ids that are taken as they are. `field` is the path in the body."""

    field: str
    text: str | None = None
    ids: "array[int] | None" = None


def prompts_of(body: CompletionBody, *, max_prompts: int, vocab_size: int) -> list[PromptSource]:
    """Return the prompts of a body in order. Raises ValidationFailed."""
    prompt = body.prompt
    is_alone = not body.suffix  # before a suffix there may be nothing
    if isinstance(prompt, str):
        return [_text("prompt", prompt, is_alone)]
    if not prompt:
        raise _refuse("prompt", "must not be empty, found an empty array")
    if len({type(entry) for entry in prompt}) > 1:
        raise _refuse("prompt", "must hold strings only, token ids only or arrays of token ids only")
    if isinstance(prompt[0], int):
        return [_ids("prompt", prompt, vocab_size)]
    if len(prompt) > max_prompts:
        raise TooManyPrompts(
            f"`prompt` must hold at most {max_prompts} prompts (--max-client-batch-size), found {len(prompt)}",
            field="prompt",
        )
    return [
        _text(f"prompt[{index}]", entry, is_alone)
        if isinstance(entry, str)
        else _ids(f"prompt[{index}]", entry if isinstance(entry, list) else [entry], vocab_size)
        for index, entry in enumerate(prompt)
    ]


def _text(name: str, text: str, is_alone: bool) -> PromptSource:
    if not text and is_alone:
        raise _refuse(name, "must not be empty, found an empty string; send at least one character")
    return PromptSource(name, text=text)


def _ids(name: str, ids: Sequence[object], vocab_size: int) -> PromptSource:
    if not ids:
        raise _refuse(name, "must not be empty, found an empty array; send at least one token id")
    checked = [token_id for token_id in ids if isinstance(token_id, int) and 0 <= token_id < vocab_size]
    if len(checked) < len(ids):
        wrong = next(token_id for token_id in ids if not (isinstance(token_id, int) and 0 <= token_id < vocab_size))
        raise _refuse(name, f"token ids must be 0 to {vocab_size - 1} (the vocabulary), found {wrong}")
    return PromptSource(name, ids=token_array(checked))


def _refuse(name: str, message: str) -> ValidationFailed:
    return ValidationFailed(f"`{name}` {message}", field=name)
