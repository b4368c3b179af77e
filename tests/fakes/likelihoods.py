"""Log-likelihoods of continuations as evaluation harnesses ask for them, computed by transformers."""

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
    """A continuation as harnesses score it: the sum of its tokens' log-probabilities, and whether each was the best."""

    logprob: float
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """Ids of a context and of one choice after it."""

    context_ids: list[int]
    ids: list[int]  # of both


def pairs_of(items: list[Item], tokenizer: object) -> list[Pair]:
    """Encoded as harnesses do: context and choice as one text, and the context alone to know where it ends."""
    encode = tokenizer.encode  # type: ignore[attr-defined]
    return [Pair(encode(item.context), encode(item.context + choice)) for item in items for choice in item.choices]


def accuracy_of(scored: list[Scored]) -> float:
    rights = [first.logprob > second.logprob for first, second in zip(scored[::2], scored[1::2], strict=True)]
    return sum(rights) / len(rights)


def score_by_transformers(pairs: list[Pair], folder: Path) -> list[Scored]:
    """In one thread: beside a server's threads, more of them wait for each other for minutes."""
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
    """Texts side by side, filled up behind their ends, where nothing before them looks."""
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
