"""A text with an image whose rows are made up, which shows how a model attends to images and checks the first steps."""

# L tokens of the text, m of them of the image, D width of the embeddings, k layers that add rows

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from textmill_shard.model.forward_batch import MediaStep

# Ids are taken modulo the size of the vocabulary.
_TEXT = (21, 5, 93, 40, 0, 0, 0, 0, 0, 0, 18, 77, 6, 31)
NUM_PROBE_TOKENS = len(_TEXT)
_SPAN = range(4, 10)
_GRID_WIDTH = 3  # tokens of the image in a row
_IDS_OF_ROWS = (3, 60, 14, 9, 81, 27)  # their embeddings, in another order for each layer, are the rows


@dataclass(frozen=True, slots=True)
class ImageProbe:
    """The text, and the arguments with which the model and the engine compute the text."""

    ids_L: torch.Tensor  # int64
    media: MediaStep
    marks: Mapping[str, torch.Tensor]  # arguments of the model, `[1, L]` int64
    positions_3L: torch.Tensor | None  # int64; None: the model has one position per token
    span: range  # the tokens that see each other, in a model in which such tokens do
    is_prompt_span: bool

    def arguments(self) -> Mapping[str, Any]:
        """Return the arguments of the model beside the embeddings."""
        if self.positions_3L is None:
            return self.marks
        return {**self.marks, "position_ids": self.positions_3L.unsqueeze(1)}

    def span_ends(self) -> torch.Tensor:
        """Return int32 `[L]`: before which token of the text each token sees all keys; 0 = no span."""
        ends_L = torch.zeros(len(self.ids_L), dtype=torch.int32)
        ends_L[self.span.start : self.span.stop] = self.span.stop
        return ends_L


def make_image_probe(
    model: Any,
    *,
    mark: str | None,
    of_text: int,
    of_span: int,
    is_prompt_span: bool,
    num_deepstack: int,
    has_rope_positions: bool,
    device: torch.device,
) -> ImageProbe:
    """Return the text. `mark` is the argument of the model with a number per token, `of_text` or `of_span`."""
    vocab_size = int(model.config.get_text_config().vocab_size)
    ids_L = torch.tensor(_TEXT, device=device) % vocab_size
    span = range(len(_TEXT)) if is_prompt_span else _SPAN
    marks = {}
    if mark is not None:
        marks_1L = torch.full_like(ids_L, of_text).unsqueeze(0)
        marks_1L[:, span.start : span.stop] = of_span
        marks[mark] = marks_1L
    ids_m = torch.tensor(_IDS_OF_ROWS, device=device) % vocab_size
    with torch.inference_mode():
        rows_mD = model.get_input_embeddings()(ids_m)
    layers = [rows_mD.roll(layer + 1, 0) for layer in range(num_deepstack)]
    places_m = torch.tensor(list(_SPAN), device=device)
    return ImageProbe(
        ids_L=ids_L,
        media=MediaStep(places_m, rows_mD, torch.stack(layers) if layers else None),
        marks=marks,
        positions_3L=_positions().to(device) if has_rope_positions else None,
        span=span,
        is_prompt_span=is_prompt_span,
    )


def _positions() -> torch.Tensor:
    """Return `[3, L]`: the tokens of the image count their time, row and column, and the text counts on behind them."""
    place_m = torch.arange(len(_SPAN))
    image_3m = torch.stack([torch.zeros_like(place_m), place_m // _GRID_WIDTH, place_m % _GRID_WIDTH]) + _SPAN.start
    before = torch.arange(_SPAN.start).expand(3, -1)
    behind = torch.arange(len(_TEXT) - _SPAN.stop).expand(3, -1) + int(image_3m.max()) + 1
    return torch.cat([before, image_3m, behind], dim=1)
