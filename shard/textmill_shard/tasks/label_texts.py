"""The texts of a call as the model's tokens, and the outputs of a text tower for texts that come again."""

# n texts of a call, T tokens of the longest text

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from threading import Lock
from typing import Any

import torch

from textmill_shard.media.errors import TextError

NUM_KEPT_LISTS = 16  # lists of texts whose tokens are kept
MAX_KEPT_BYTES = 64 << 20  # of outputs of the text tower


class LabelTexts:
    """Tokenises lists of texts. Any thread may call an object of this class.

    `max_tokens` is the longest text with its special tokens, 0 = there is no bound. With `fixed_tokens` each text is
    padded to so many tokens, as the model was trained. The first `num_places` tokens of each text stand for the image,
    and the model takes them away again (BLIP-2).
    """

    def __init__(self, tokenizer: Any, *, max_tokens: int, fixed_tokens: int = 0, num_places: int = 0) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._num_places = num_places
        self._padding: Mapping[str, Any] = {"padding": True}
        if fixed_tokens:
            self._padding = {"padding": "max_length", "max_length": fixed_tokens}
        self._lock = Lock()  # a tokenizer keeps the padding of the call that it serves
        self._tokens = lru_cache(maxsize=NUM_KEPT_LISTS)(self._tokenise)

    def __call__(self, texts: tuple[str, ...]) -> Mapping[str, torch.Tensor]:
        """Return the inputs of the text tower, `[n, T]` each. Raises TextError for a text that is too long."""
        with self._lock:
            return self._tokens(texts)

    def _tokenise(self, texts: tuple[str, ...]) -> Mapping[str, torch.Tensor]:
        if self._max_tokens:
            for text, ids in zip(texts, self._tokenizer(list(texts))["input_ids"], strict=True):
                if len(ids) > self._max_tokens:
                    raise TextError(
                        f"{text[:64]!r} has {len(ids)} tokens, and the model reads at most {self._max_tokens}; send a "
                        "shorter text"
                    )
        tokens = dict(self._tokenizer(list(texts), return_tensors="pt", **self._padding))
        if self._num_places:
            places = torch.ones(len(texts), self._num_places, dtype=torch.int64)
            tokens = {name: torch.cat([places, tensor], dim=1) for name, tensor in tokens.items()}
        return tokens


class KeptTexts:
    """Keeps the outputs of a text tower, so that labels that come again are not computed again.

    One thread computes. `tower` computes texts alone, whatever the images are.
    """

    def __init__(self, tower: Any) -> None:
        self._forward: Callable[..., Any] = tower.forward
        self._kept: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self._texts: tuple[str, ...] = ()
        tower.forward = self._compute

    def expect(self, texts: tuple[str, ...]) -> None:
        """Say which texts the next forward pass of the model reads."""
        self._texts = texts

    def _compute(self, *inputs: Any, **named: Any) -> Any:
        texts = self._texts
        if texts in self._kept:
            self._kept.move_to_end(texts)
        else:
            self._kept[texts] = self._forward(*inputs, **named)
            while len(self._kept) > 1 and sum(map(_num_bytes, self._kept.values())) > MAX_KEPT_BYTES:
                self._kept.popitem(last=False)
        found = self._kept[texts]
        return type(found)(**found)  # models write into the outputs of their towers


def find_text_tower(model: Any) -> Any | None:
    """Return the module that computes texts alone, or None where the model has none of that name."""
    return next((module for name, module in model.named_modules() if name.split(".")[-1] == "text_model"), None)


def _num_bytes(output: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in output.values() if torch.is_tensor(value))
