"""Signs of life of a generation by transformers, which computes many steps in one call."""

from collections.abc import Callable

import torch
from transformers import LogitsProcessor


class NotFinite(Exception):
    """A score of a token is no number."""


class GenerationSigns(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Gives a sign of life at each token, and ends the generation where a score is no number."""

    def __init__(self, on_sign: Callable[[], None]) -> None:
        self._on_sign = on_sign

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._on_sign()
        if bool(scores.isnan().any()):
            raise NotFinite
        return scores
