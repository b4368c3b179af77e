"""Makes pictures with a question, and pages with words, ready for models that read both."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from textmill_shard.media.errors import TextError
from textmill_shard.media.image_file import decode_image
from textmill_shard.tasks.media_rows import Read, ReadyRow

Encode = Callable[[str], Sequence[int]]
# The value at each token of inputs other than the ids.
_FILLINGS = {"attention_mask": 1, "token_type_ids": 0}


def question_read(picture: Read, encode: Encode, names: Sequence[str], *, max_tokens: int) -> Read:
    """Return a function from a picture and a question to the model's input. The function raises MediaError.

    `encode` gives the tokens of a question, and `names` are the inputs that the model has for the tokens. A question
    has at most `max_tokens`, 0 = there is no bound.
    """

    def read(data: bytes, texts: tuple[str, ...]) -> ReadyRow:
        (question,) = texts
        ids = encode(question)
        if max_tokens and len(ids) > max_tokens:
            raise TextError(
                f"the question has {len(ids)} tokens, and the model reads at most {max_tokens}; send a shorter question"
            )
        tokens = {
            name: torch.full((len(ids),), _FILLINGS[name]) if name in _FILLINGS else torch.tensor(ids) for name in names
        }
        row = picture(data, texts)
        return replace(row, inputs={**row.inputs, **tokens})

    return read


def page_read(*, max_pixels: int) -> Read:
    """Return a function that looks whether a page can be read, for models that read the words of a page alone."""

    def read(data: bytes, texts: tuple[str, ...]) -> ReadyRow:
        image = decode_image(data, max_pixels=max_pixels)
        return ReadyRow({}, size=(image.height, image.width))

    return read
