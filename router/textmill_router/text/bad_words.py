"""Words that an answer must not have become sequences of token ids that the shard never completes."""

from collections.abc import Sequence

from textmill_router.text.tokenization import Tokenizer


def bad_sequences(tokenizer: Tokenizer, words: Sequence[str], *, num_ids: int) -> tuple[tuple[int, ...], ...]:
    """Return the ids of each word at the start of a text and of each word behind a space, each sequence once.

    As in vLLM, blanks before a word do not count. A model of `num_ids` tokens never gives a sequence with other ids, so
    such a sequence is left out. `words` are not empty.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip() or word
        for text in (bare, f" {bare}"):
            ids = tuple(tokenizer.encode_plain(text))
            if ids and max(ids) < num_ids:
                found[ids] = None
    return tuple(found)
