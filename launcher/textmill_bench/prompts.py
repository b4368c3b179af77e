"""Prompts of random words behind shared beginnings, or the prompts of a file."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from textmill_bench.errors import BenchError

# Most tokenizers have one token for each of these words with the space before the word.
_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city community name president team minute idea "
    "kid body information back parent face others level office door health person art war history party result "
    "change morning reason research girl guy moment air teacher force education"
)
WORDS = _WORDS.split()


@dataclass(frozen=True, slots=True)
class WordRate:
    """How many tokens the server counts: so many for each word, and so many beside the words of a prompt."""

    tokens_per_word: float = 1.0
    further_tokens: float = 0.0

    def words_for(self, num_tokens: int) -> int:
        """Return how many words make a prompt of about so many tokens; at least one."""
        return max(1, round((num_tokens - self.further_tokens) / self.tokens_per_word))


def rate_of(samples: list[tuple[int, int]]) -> WordRate:
    """Return the rate of a straight line through two samples of (words, tokens that the server counted)."""
    (few, few_tokens), (many, many_tokens) = samples
    per_word = (many_tokens - few_tokens) / (many - few)
    if per_word <= 0:
        return WordRate()
    return WordRate(per_word, few_tokens - per_word * few)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptShape:
    """Sizes in tokens. Each prompt begins with one of `num_prefixes` shared beginnings, unless these are empty."""

    num_tokens: int  # of the prompt's own
    num_shared_tokens: int = 0
    num_prefixes: int = 1


class PromptMaker:
    """Makes prompts of random words. Equal seeds make equal prompts, and a new seed finds a cold prefix cache."""

    def __init__(self, shape: PromptShape, rate: WordRate, seed: int) -> None:
        self._random = random.Random(seed)
        self._num_words = max(1, round(shape.num_tokens / rate.tokens_per_word))
        if not shape.num_shared_tokens:
            self._num_words = rate.words_for(shape.num_tokens)
        num_shared = rate.words_for(shape.num_shared_tokens) if shape.num_shared_tokens else 0
        self._prefixes = [self.words(num_shared) for _ in range(shape.num_prefixes)] if num_shared else [""]
        self._number = 0

    def words(self, count: int) -> str:
        """Return so many random words."""
        return " ".join(self._random.choices(WORDS, k=count))

    def next(self) -> str:
        """Return the next prompt. The shared beginnings take turns."""
        prefix = self._prefixes[self._number % len(self._prefixes)]
        self._number += 1
        return f"{prefix} {self.words(self._num_words)}".lstrip()


class FilePrompts:
    """Gives the prompts of a file again and again."""

    def __init__(self, prompts: list[str]) -> None:
        self._prompts = prompts
        self._number = 0

    def next(self) -> str:
        """Return the next prompt."""
        prompt = self._prompts[self._number % len(self._prompts)]
        self._number += 1
        return prompt


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file: one JSON text, or object with the text `prompt`, on each line.

    Raises BenchError for a file or a line that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"--prompts {path} cannot be read: {error}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            raise BenchError(f"--prompts {path}, line {number}: no JSON, wanted a text or an object") from None
        prompt = entry.get("prompt") if isinstance(entry, dict) else entry
        if not isinstance(prompt, str) or not prompt:
            raise BenchError(f'--prompts {path}, line {number}: wanted "text" or {{"prompt": "text"}}')
        prompts.append(prompt)
    if not prompts:
        raise BenchError(f"--prompts {path} holds no prompt")
    return prompts
