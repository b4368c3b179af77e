"""A local multiple-choice task of 100 items: fifty short facts, each in two items with different wrong answers."""

from dataclasses import dataclass

_CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Austria": "Vienna",
    "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Poland": "Warsaw", "Hungary": "Budapest", "Portugal": "Lisbon", "Ireland": "Dublin", "Russia": "Moscow",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Turkey": "Ankara",
}  # fmt: skip
_COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "the clear sky": "blue"}
_OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "left": "right",
    "fast": "slow", "old": "young", "rich": "poor", "open": "closed", "high": "low",
}  # fmt: skip
_SUMS = {f"{left} + {right}": f"{left + right}" for left, right in zip(range(2, 12), range(9, 49, 4), strict=True)}


@dataclass(frozen=True, slots=True)
class Item:
    """One question. The first choice is right."""

    context: str
    choices: tuple[str, str]


def make_items() -> list[Item]:
    """Return the items. The wrong answers of a fact are the answers of the next two facts of its kind."""
    items = []
    for pattern, facts in (
        ("The capital of {} is", _CAPITALS),
        ("The colour of {} is", _COLOURS),
        ("The opposite of {} is", _OPPOSITES),
        ("Question: what is {}?\nAnswer:", _SUMS),
    ):
        answers = list(facts.values())
        for number, (subject, answer) in enumerate(facts.items()):
            for distance in (1, 2):
                wrong = answers[(number + distance) % len(answers)]
                items.append(Item(pattern.format(subject), (f" {answer}", f" {wrong}")))
    return items
