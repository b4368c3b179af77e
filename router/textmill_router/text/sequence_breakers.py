"""Texts that end a repetition become token ids: the sequence breakers of DRY (`sampling/dry.py` of the shard)."""

from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate

from textmill_router.text.tokenization import Tokenizer

MAX_REMEMBERED = 256  # texts
_BORDER = "\x00"  # stands between two tokens


class SequenceBreakers:
    """Each token whose own text contains a breaker is one, so that "." breaks at "." and at "...".

    A breaker that no token contains (several tokens, such as "Human:") breaks at the last token of its encoding: every
    occurrence of that token then breaks. The constructor reads the text of every token, which takes some ten
    milliseconds; what was found for the last MAX_REMEMBERED breakers is kept.
    """

    def __init__(self, tokenizer: Tokenizer, *, num_ids: int) -> None:
        self._tokenizer = tokenizer
        self._num_ids = num_ids  # ids that tokenizer and model both know
        texts = [tokenizer.id_to_text(token_id).replace(_BORDER, "") for token_id in range(num_ids)]
        self._all_texts = _BORDER.join(texts)
        # Where the text of each id begins; one more entry for the end.
        self._starts = [0, *accumulate(len(text) + len(_BORDER) for text in texts)]
        self._found: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    def ids_of(self, texts: tuple[str, ...]) -> tuple[int, ...]:
        """The ids that break, rising. A new text takes some milliseconds at most, a known one none."""
        return tuple(sorted({token_id for text in texts for token_id in self._ids_with(text)}))

    def _ids_with(self, text: str) -> tuple[int, ...]:
        found = self._found.get(text)
        if found is None:
            found = self._search(text)
            if len(self._found) == MAX_REMEMBERED:
                self._found.popitem(last=False)
            self._found[text] = found
        self._found.move_to_end(text)
        return found

    def _search(self, text: str) -> tuple[int, ...]:
        ids = []
        place = -1 if _BORDER in text else self._all_texts.find(text)
        while place >= 0:
            token_id = bisect_right(self._starts, place) - 1
            ids.append(token_id)
            place = self._all_texts.find(text, self._starts[token_id + 1])
        if ids:
            return tuple(ids)
        encoded = self._tokenizer.encode_plain(text)
        return (encoded[-1],) if encoded and encoded[-1] < self._num_ids else ()
