"""Computes log-likelihoods of continuations by transformers, in the form in which evaluation harnesses ask for them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.fakes.multiple_choice import Item

REFERENCE_BATCH = 20
MAX_DIFFERENCE = 1e-2  # natural log, of a whole continuation, in fp32


@dataclass(frozen=True, slots=True)
class Scored:
    """The score of a continuation: the sum of its tokens' log-probabilities, and whether each token was the best."""

    logprob: float
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """The ids of a context, and of the context with one choice behind it."""

    context_ids: list[int]
    ids: list[int]  # of context and choice


def pairs_of(items: list[Item], tokenizer: object) -> list[Pair]:
    """Encode as harnesses do: context and choice as one text, and the context alone, which gives the border."""
    encode = tokenizer.encode  # type: ignore[attr-defined]
    return [Pair(encode(item.context), encode(item.context + choice)) for item in items for choice in item.choices]


def accuracy_of(scored: list[Scored]) -> float:
    rights = [first.logprob > second.logprob for first, second in zip(scored[::2], scored[1::2], strict=True)]
    return sum(rights) / len(rights)


def score_by_transformers(pairs: list[Pair], folder: Path) -> list[Scored]:
    """Return the score of each pair.

    torch computes in one thread, because several threads beside those of a server wait for each other for minutes.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            scored
            for start in range(0, len(pairs), REFERENCE_BATCH)
            for scored in _score(model, pairs[start : start + REFERENCE_BATCH])
        ]
    finally:
        torch.set_num_threads(num_threads)


def _score(model: torch.nn.Module, pairs: list[Pair]) -> Iterator[Scored]:
    """Score texts in one batch. The padding stands behind the texts, where causal attention does not look."""
    longest = max(len(pair.ids) for pair in pairs)
    ids_BT = torch.tensor([pair.ids + [0] * (longest - len(pair.ids)) for pair in pairs])
    with torch.inference_mode():
        logprobs_BTV = torch.log_softmax(model(ids_BT).logits, dim=-1)
    for logprobs_TV, pair in zip(logprobs_BTV, pairs, strict=True):
        places = range(len(pair.context_ids), len(pair.ids))
        yield Scored(
            sum(float(logprobs_TV[place - 1, pair.ids[place]]) for place in places),
            all(int(logprobs_TV[place - 1].argmax()) == pair.ids[place] for place in places),
        )
