"""Added tokens that the library looks for in the normalised text, so that a text can hold them in other spellings.

A tokenizer that writes all letters small reads `<|TURN|>` as the token `<|turn|>`, and a tokenizer that replaces wide
characters reads `＜|turn|＞` as this token.
"""

from collections.abc import Callable, Collection

import tokenizers


class NormalizedTokens:
    """Finds such tokens in texts. `texts` are those as the files write them."""

    def __init__(self, library: tokenizers.Tokenizer, texts: Collection[str]) -> None:
        added = library.get_added_tokens_decoder().items()
        found = {token_id: token.content for token_id, token in added if token.normalized and token.content in texts}
        self._library = library
        self._normalize: Callable[[str], str] = str if library.normalizer is None else library.normalizer.normalize_str
        self._ids = frozenset(found)
        self.texts = frozenset(map(self._normalize, found.values())) - {""}
        characters = {character for text in self.texts for character in text}
        marks = {character for character in characters if not (character.isalnum() or character in " _\u2581")}
        self._characters = marks or characters

    def may_hold_part(self, text: str) -> bool:
        """Whether a text could be a part of one of these tokens, or hold one: a quick look that never misses one.

        A token whose text has signs besides letters and digits is known by these signs.
        """
        return not self._characters.isdisjoint(self._normalize(text))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return (start, stop) of each of these tokens, in characters of the text as it was before normalisation."""
        encoding = self._library.encode(text, add_special_tokens=False)
        return [span for token_id, span in zip(encoding.ids, encoding.offsets, strict=True) if token_id in self._ids]

    def normalize(self, text: str) -> str:
        """Return the text in which the library looks for these tokens."""
        return self._normalize(text)
