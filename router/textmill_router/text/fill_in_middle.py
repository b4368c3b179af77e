"""Makes fill-in-the-middle prompts: the texts before and after a gap, between tokens that the model knows."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from textmill_router.request import token_array


@dataclass(frozen=True, slots=True)
class _Form:
    """Tokens of a published vocabulary, in the order of a prompt. A token of `ends` ends the text in the gap."""

    first: str
    second: str
    last: str = ""
    suffix_first: bool = False
    ends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MiddleTokens:
    """Token ids of the form that a model knows. With `suffix_first` the text after the gap comes first."""

    first: int
    second: int
    last: int | None
    suffix_first: bool
    end_ids: tuple[int, ...]

    def join(self, prefix_ids: "array[int]", suffix_ids: "array[int]") -> "array[int]":
        """Return the ids of a prompt, without the tokens that a tokenizer puts at the ends of a prompt."""
        one, two = (suffix_ids, prefix_ids) if self.suffix_first else (prefix_ids, suffix_ids)
        last = () if self.last is None else (self.last,)
        return token_array((self.first, *one, self.second, *two, *last))


# Qwen coder, Granite 4 and CodeGemma; StarCoder and its kin; SantaCoder; DeepSeek coder; Code Llama; Codestral.
_FORMS = (
    _Form(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ends=("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>", "<|endoftext|>"),
    ),
    _Form("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ends=("<fim_pad>", "<file_sep>", "<|endoftext|>")),
    _Form("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ends=("<fim-pad>", "<|endoftext|>")),
    _Form("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    _Form("▁<PRE>", "▁<SUF>", "▁<MID>", ends=("▁<EOT>",)),
    _Form("[SUFFIX]", "[PREFIX]", suffix_first=True),
)


def find_middle_tokens(token_to_id: Callable[[str], int | None]) -> MiddleTokens | None:
    """Return the tokens of the first form that is whole in this vocabulary, None where no form is."""
    for form in _FORMS:
        first, second = token_to_id(form.first), token_to_id(form.second)
        last = token_to_id(form.last) if form.last else None
        if first is None or second is None or (form.last and last is None):
            continue
        own = (first, second) if last is None else (first, second, last)
        ends = [token_id for token_id in map(token_to_id, form.ends) if token_id is not None]
        return MiddleTokens(first, second, last, form.suffix_first, (*own, *ends))
    return None
