"""Entities from the labels of tokens, as transformers' pipeline for token classification groups them.

A label `B-PER` begins an entity of the tag PER, `I-PER` goes on, and a label without these letters counts as going on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Strategy = Literal["none", "simple", "first", "average", "max"]


@dataclass(frozen=True, slots=True)
class TaggedToken:
    """A token of the text with the probability of each label. `start` and `end` are characters of the text."""

    index: int  # place in the row, special tokens before the text included
    word: str
    scores: Sequence[float]
    start: int
    end: int
    is_part: bool  # of the word that the token before began


@dataclass(frozen=True, slots=True)
class _Tagged:
    """A token or a word with its best label."""

    label: str
    score: float
    word: str
    start: int
    end: int
    index: int


def find_entities(
    tokens: Sequence[TaggedToken],
    strategy: Strategy,
    labels: Sequence[str],
    ignored: frozenset[str],
    join: Callable[[Sequence[str]], str],
) -> list[dict[str, object]]:
    """Return the entities of a text in order, without those of ignored labels. `join` makes a text of tokens."""
    if strategy in ("none", "simple"):
        tagged = [_best(token.scores, labels, token) for token in tokens]
    else:
        tagged = [_tag_word(word, strategy, labels, join) for word in _words(tokens)]
    if strategy == "none":
        return [
            {
                "entity": one.label,
                "score": one.score,
                "index": one.index,
                "word": one.word,
                "start": one.start,
                "end": one.end,
            }
            for one in tagged
            if one.label not in ignored
        ]
    return [entity for group in _groups(tagged) if (entity := _entity(group, join))["entity_group"] not in ignored]


def _words(tokens: Sequence[TaggedToken]) -> list[list[TaggedToken]]:
    words: list[list[TaggedToken]] = []
    for token in tokens:
        if words and token.is_part:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _best(scores: Sequence[float], labels: Sequence[str], token: TaggedToken) -> _Tagged:
    best = max(range(len(scores)), key=lambda index: scores[index])
    return _Tagged(labels[best], scores[best], token.word, token.start, token.end, token.index)


def _tag_word(
    word: Sequence[TaggedToken], strategy: Strategy, labels: Sequence[str], join: Callable[[Sequence[str]], str]
) -> _Tagged:
    """Return the word with the label of its first token, of its surest token, or of the mean of its tokens."""
    first = word[0]
    if strategy == "first":
        scores = first.scores
    elif strategy == "max":
        scores = max(word, key=lambda token: max(token.scores)).scores
    else:
        scores = [sum(column) / len(word) for column in zip(*(token.scores for token in word), strict=True)]
    best = max(range(len(scores)), key=lambda index: scores[index])
    text = join([token.word for token in word])
    return _Tagged(labels[best], scores[best], text, first.start, word[-1].end, first.index)


def _split(label: str) -> tuple[bool, str]:
    """Return whether a label begins an entity, and its tag."""
    if label.startswith(("B-", "I-")):
        return label[0] == "B", label[2:]
    return False, label


def _groups(tagged: Sequence[_Tagged]) -> list[list[_Tagged]]:
    groups: list[list[_Tagged]] = []
    for one in tagged:
        begins, tag = _split(one.label)
        if groups and not begins and _split(groups[-1][-1].label)[1] == tag:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _entity(group: Sequence[_Tagged], join: Callable[[Sequence[str]], str]) -> dict[str, object]:
    return {
        "entity_group": group[0].label.split("-", 1)[-1],
        "score": sum(one.score for one in group) / len(group),
        "word": join([one.word for one in group]),
        "start": group[0].start,
        "end": group[-1].end,
    }
