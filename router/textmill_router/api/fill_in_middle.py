"""Fill-in-the-middle prompts: a text before and a text after, between the tokens that a model was taught for it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MiddleTokens:
    """Tokens in the order in which the prompt has them; `suffix_first` where the text after comes before."""

    first: str
    second: str
    last: str = ""
    suffix_first: bool = False

    def join(self, prefix: str, suffix: str) -> str:
        """The prompt; special tokens in it are to be parsed."""
        one, two = (suffix, prefix) if self.suffix_first else (prefix, suffix)
        return f"{self.first}{one}{self.second}{two}{self.last}"


# Published vocabularies: Qwen coder and CodeGemma; StarCoder and its kin; DeepSeek coder; Code Llama; Codestral.
_KNOWN = (
    MiddleTokens("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    MiddleTokens("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    MiddleTokens("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    MiddleTokens("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    MiddleTokens("▁<PRE>", "▁<SUF>", "▁<MID>"),
    MiddleTokens("[SUFFIX]", "[PREFIX]", suffix_first=True),
)


def find_middle_tokens(token_to_id: Callable[[str], int | None]) -> MiddleTokens | None:
    """The tokens that this vocabulary has, None where it has none."""
    for tokens in _KNOWN:
        texts = [text for text in (tokens.first, tokens.second, tokens.last) if text]
        if all(token_to_id(text) is not None for text in texts):
            return tokens
    return None
