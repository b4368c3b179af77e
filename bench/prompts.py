"""Makes prompts of an exact number of tokens: random words, optionally behind one shared beginning."""

import random
import re
from pathlib import Path

import tokenizers

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MAX_TRIES = 50


class PromptMaker:
    """A maker of prompts with one tokenizer. Equal seeds give equal prompts; a new seed gives a cold prefix cache."""

    def __init__(self, model_dir: Path, seed: int) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        self._random = random.Random(seed)
        ids = range(self._tokenizer.get_vocab_size())
        texts = (self._tokenizer.decode([token]) for token in ids)
        words = sorted({text for text in texts if re.fullmatch(" [a-z]{3,}", text)})
        self._words = words or list(LETTERS)  # a byte tokenizer has no words

    def count(self, text: str) -> int:
        """Return the number of tokens of a text as a server counts them, special tokens included."""
        return len(self._tokenizer.encode(text).ids)

    def text(self, num_tokens: int, *, prefix: str = "") -> str:
        """Return a text that starts with `prefix` and has `num_tokens` tokens in all.

        Raises ValueError when no such text is found.
        """
        words: list[str] = []
        missing = num_tokens - self.count(prefix)
        for _ in range(MAX_TRIES):
            if missing >= 0:
                words.extend(self._random.choices(self._words, k=missing))
            else:
                del words[missing:]
            text = prefix + "".join(words)
            missing = num_tokens - self.count(text)
            if missing == 0:
                return text
        raise ValueError(f"no text of {num_tokens} tokens behind a prefix of {self.count(prefix)} was found")

    def texts(self, count: int, num_tokens: int, *, num_shared_tokens: int = 0) -> list[str]:
        """Return `count` prompts, each with `num_shared_tokens` tokens that all share and `num_tokens` of its own."""
        prefix = self.text(num_shared_tokens) if num_shared_tokens else ""
        return [self.text(num_shared_tokens + num_tokens, prefix=prefix) for _ in range(count)]
