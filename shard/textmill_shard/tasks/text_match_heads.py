"""How well texts fit an image: the labels of zero-shot-image-classification."""

# k images of one list of texts, n texts

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from textmill_shard.tasks.heads import NOT_FINITE
from textmill_shard.tasks.label_texts import KeptTexts, LabelTexts, find_text_tower
from textmill_shard.tasks.media_rows import ReadyRow
from textmill_shard.tasks.media_runner import stack
from textmill_shard.tasks.rows import Answer, RowFailure


class TextMatchHead:
    """Scores by the similarity of image and text.

    `scores_each` gives each text its own probability (sigmoid), else the probabilities of an image sum to 1 (softmax).
    """

    def __init__(
        self, model: Any, texts: LabelTexts, *, scores_each: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._model = model
        self._texts = texts
        self._scores_each = scores_each
        self._device = device
        self._dtype = dtype
        tower = find_text_tower(model)
        self._kept = None if tower is None else KeptTexts(tower)

    def compute(self, rows: Sequence[ReadyRow], on_sign: Callable[[], None]) -> list[Answer | RowFailure]:
        answers: dict[int, Answer | RowFailure] = {}
        for texts in dict.fromkeys(row.texts for row in rows):
            on_sign()
            indices = [index for index, row in enumerate(rows) if row.texts == texts]
            answers.update(zip(indices, self._match(texts, [rows[index] for index in indices]), strict=True))
        return [answers[index] for index in range(len(rows))]

    def _match(self, texts: tuple[str, ...], rows: Sequence[ReadyRow]) -> list[Answer | RowFailure]:
        if self._kept is not None:
            self._kept.expect(texts)
        tokens = {name: tensor.to(self._device) for name, tensor in self._texts(texts).items()}
        output = self._model(**tokens, **stack(rows, device=self._device, dtype=self._dtype))
        logits_kn = output.logits_per_image.float()
        scores_kn = logits_kn.sigmoid() if self._scores_each else logits_kn.softmax(dim=1)
        return [_finite(scores) for scores in scores_kn.cpu().numpy()]


class PairHead:
    """Scores of a model that reads image and text together, and says whether the two belong together (BLIP).

    A score is softmax over "no" and "yes", at "yes": `BlipForImageTextRetrieval` with its matching head.
    """

    def __init__(self, model: Any, texts: LabelTexts, *, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self._texts = texts
        self._device = device
        self._dtype = dtype

    def compute(self, rows: Sequence[ReadyRow], on_sign: Callable[[], None]) -> list[Answer | RowFailure]:
        images = stack(rows, device=self._device, dtype=self._dtype)
        states = self._model.vision_model(pixel_values=images["pixel_values"]).last_hidden_state
        answers: list[Answer | RowFailure] = []
        for row, state in zip(rows, states, strict=True):
            on_sign()
            tokens = {name: tensor.to(self._device) for name, tensor in self._texts(row.texts).items()}
            of_texts = self._model.text_encoder(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                encoder_hidden_states=state.expand(len(row.texts), -1, -1),
                encoder_attention_mask=torch.ones(len(row.texts), len(state), dtype=torch.long, device=self._device),
            ).last_hidden_state
            logits_n2 = self._model.itm_head(of_texts[:, 0]).float()
            answers.append(_finite(logits_n2.softmax(dim=1)[:, 1].cpu().numpy()))
        return answers


def _finite(scores_n: "np.ndarray[Any, np.dtype[np.float32]]") -> Answer | RowFailure:
    return scores_n if bool(np.isfinite(scores_n).all()) else NOT_FINITE
