"""Signs of life of a generation by transformers, which computes many steps in one call."""

# B beams of all rows, V vocabulary

from collections.abc import Callable

import torch
from transformers import LogitsProcessor


class NotFinite(Exception):
    """Scores from which no token can be taken, because one is no number or the probabilities to draw from are none."""


class GenerationSigns(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Gives a sign of life at each token, and raises NotFinite where no token can be taken from the scores.

    `temperature` is that of a generation that draws; None: the generation takes the best token.
    """

    def __init__(self, on_sign: Callable[[], None], *, temperature: float | None = None) -> None:
        self._on_sign = on_sign
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores `[B, V]` as they are."""
        self._on_sign()
        if self._temperature is None:
            is_bad = scores.isnan().any()
        else:
            # The softmax of a row is finite where the best score of the row is, which is not a number beside one that
            # is none. transformers divides by the temperature behind this.
            is_bad = (~(scores.amax(dim=1) / self._temperature).isfinite()).any()
        if bool(is_bad):
            raise NotFinite
        return scores
