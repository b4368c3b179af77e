"""Asks the library that enforces grammars which texts a grammar lets through, and makes such texts at random."""

import random
from collections.abc import Mapping, Sequence

import llguidance
import tokenizers
from textmill_router.request import Grammar
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from tests.fakes.chat_templates import DEEPSEEK_TAGS, GLM_TAGS, KIMI_TAGS

END_ID = 256
CHANNEL_MARKS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>")
MARKERS = (
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<think>",
    "</think>",
    "[ARGS]",
    *CHANNEL_MARKS,
    *DEEPSEEK_TAGS,
    *KIMI_TAGS,
    *(tag for tag in GLM_TAGS if "arg" in tag),
)


def ids_of(*markers: str) -> dict[str, int]:
    return {marker: END_ID + 1 + MARKERS.index(marker) for marker in markers}


def make_library(markers: Sequence[str]) -> tokenizers.Tokenizer:
    """Return a tokenizer with one token for each byte, then the end token and the markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<end>", special=True)])
    made.add_tokens([AddedToken(marker, special=marker.startswith("[")) for marker in markers])
    return made


class Judge:
    """The judge of texts, by the library's own matcher."""

    def __init__(self) -> None:
        self.library = make_library(MARKERS)
        self._letters = make_library(())

    def matcher(self, marker_ids: Mapping[str, int], grammar: Grammar) -> llguidance.LLMatcher:
        library = self.library if marker_ids else self._letters
        vocabulary = llguidance.LLTokenizer(
            library.to_str(), n_vocab=library.get_vocab_size(with_added_tokens=True), eos_token=[END_ID]
        )
        matcher = llguidance.LLMatcher(vocabulary, grammar.text, log_level=0)
        assert not matcher.get_error(), matcher.get_error()
        return matcher

    def follows(self, marker_ids: Mapping[str, int], grammar: Grammar, text: str) -> bool:
        """Return whether the grammar allows each token of the text at its place, and the end behind the text."""
        matcher = self.matcher(marker_ids, grammar)
        library = self.library if marker_ids else self._letters
        for token_id in library.encode(text).ids:
            allowed = matcher.compute_bitmask()
            if not allowed[token_id // 8] >> token_id % 8 & 1:
                return False
            assert matcher.consume_token(token_id)
        return matcher.is_accepting()

    def sample(self, grammar: Grammar, snippets: Sequence[str], source: random.Random, max_bytes: int) -> str | None:
        """Return a text of snippets and bytes that the grammar lets through, or None when the text gets too long."""
        matcher = self.matcher({}, grammar)
        written: list[int] = []
        choices = [self._letters.encode(snippet).ids for snippet in snippets]
        while len(written) < max_bytes:
            if matcher.is_accepting() and source.random() < 0.6:
                return bytes_of(written)
            fitting = [ids for ids in choices if matcher.validate_tokens(ids) == len(ids)]
            if fitting and source.random() < 0.9:
                ids = source.choice(fitting)
            else:
                allowed = matcher.compute_bitmask()
                ids = [token for token in PRINTABLE_IDS if allowed[token // 8] >> token % 8 & 1]
                if not ids:
                    return bytes_of(written) if matcher.is_accepting() else None
                ids = [source.choice(ids)]
            assert matcher.consume_tokens(ids)
            written += ids
        return None


def bytes_of(token_ids: Sequence[int]) -> str:
    """Return the text of tokens that are one ASCII byte each."""
    return "".join(CHARACTER_OF[token_id] for token_id in token_ids)


_LIBRARY = make_library(())
CHARACTER_OF = {_LIBRARY.encode(chr(code)).ids[0]: chr(code) for code in (*range(32, 127), 9, 10)}
PRINTABLE_IDS = tuple(CHARACTER_OF)
