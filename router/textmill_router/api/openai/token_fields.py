"""Fields of vLLM that name tokens: ids that end an answer, the only ids of an answer, words that no answer has."""

from collections.abc import Sequence

from textmill_router.api.openai.types import OpenAIBody
from textmill_router.errors import ValidationFailed
from textmill_router.text.bad_words import bad_sequences
from textmill_router.text.tokenization import Tokenizer

MAX_STOP_IDS = 256
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARACTERS = 100


def checked_stop_ids(body: OpenAIBody, vocab_size: int) -> tuple[int, ...]:
    """Return the ids of `stop_token_ids`, each of which ends the text. Raises ValidationFailed for ids of no token."""
    ids = _checked_ids("stop_token_ids", body.stop_token_ids or (), vocab_size)
    if len(ids) > MAX_STOP_IDS:
        raise ValidationFailed(
            f"`stop_token_ids` must have at most {MAX_STOP_IDS} ids, found {len(ids)}", field="stop_token_ids"
        )
    return ids


def checked_allowed_ids(body: OpenAIBody, vocab_size: int) -> tuple[int, ...]:
    """Return the only ids that the answer may have; none where each id may stand.

    Raises ValidationFailed for ids of no token, and for an empty list.
    """
    name = "allowed_token_ids"
    if body.allowed_token_ids is None:
        return ()
    if not body.allowed_token_ids:
        raise ValidationFailed(f"`{name}` must name at least one token; leave it out to allow each", field=name)
    return _checked_ids(name, body.allowed_token_ids, vocab_size)


def checked_bad_sequences(body: OpenAIBody, tokenizer: Tokenizer, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """Return the token ids of `bad_words`. Raises ValidationFailed."""
    words, most = body.bad_words or (), MAX_BAD_WORD_CHARACTERS
    if len(words) > MAX_BAD_WORDS:
        raise ValidationFailed(
            f"`bad_words` must have at most {MAX_BAD_WORDS} words, found {len(words)}", field="bad_words"
        )
    for index, word in enumerate(words):
        if not 0 < len(word) <= most:
            path = f"bad_words[{index}]"
            raise ValidationFailed(f"`{path}` must have 1 to {most} characters, found {len(word)}", field=path)
    return bad_sequences(tokenizer, words, num_ids=vocab_size)


def _checked_ids(name: str, ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """Return the ids, each once."""
    for index, token_id in enumerate(ids):
        if not 0 <= token_id < vocab_size:
            path = f"{name}[{index}]"
            raise ValidationFailed(
                f"`{path}` must be 0 to {vocab_size - 1} (the vocabulary), found {token_id}", field=path
            )
    return tuple(dict.fromkeys(ids))
