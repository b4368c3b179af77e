"""Trains a tower of two layers and a projector, whose four rows for a picture are word embeddings of the demo model.

The text model is left as it is. Where the picture stands the text model reads ` one plain red circle`, and it answers
about these words.
"""

# B pictures of a batch, n rows of a picture, D width of the embeddings, W words to choose from

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from bench.demo_vision.pictures import COLOURS, SHAPES, draw

VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 16,
    "projection_dim": 32,
}
FIRST_WORDS = (" one", " plain")  # of every picture; the colour and the shape follow
NUM_PICTURES, BATCH, STEPS_AT_ONCE, MAX_ROUNDS = 6000, 48, 200, 40
WANTED_SHARE = 0.99  # of the pictures that training has not seen, named right
NUM_UNSEEN = 400
_RATE = 2e-3
_SHARPNESS = 16.0  # of the choice among words by their distance

ReadPicture = Callable[[Image.Image], torch.Tensor]  # gives `[3, 32, 32]`, as the processor of the checkpoint does


@dataclass(frozen=True, slots=True)
class Words:
    """The embeddings that the rows of a picture shall have."""

    first_2D: torch.Tensor
    colours_WD: torch.Tensor
    shapes_WD: torch.Tensor


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pixels with the numbers of their colours and shapes."""

    pixels: torch.Tensor  # [pictures, 3, 32, 32]
    colours: torch.Tensor  # int64
    shapes: torch.Tensor  # int64


def make_tower(width: int) -> Any:
    """Return a Llava whose text model is a stand-in of the given width."""
    text = LlamaConfig(
        hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8, pad_token_id=0
    )
    config = LlavaConfig(
        text_config=text.to_dict(),
        vision_config=VISION,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration(config)


def draw_pictures(count: int, read: ReadPicture, *, seed: int) -> Pictures:
    drawn = random.Random(seed)
    kinds = [(drawn.randrange(len(COLOURS)), drawn.randrange(len(SHAPES))) for _ in range(count)]
    names = tuple(COLOURS)
    return Pictures(
        torch.stack([read(draw(drawn, names[colour], SHAPES[shape])) for colour, shape in kinds]),
        torch.tensor([colour for colour, _ in kinds]),
        torch.tensor([shape for _, shape in kinds]),
    )


def train(model: Any, words: Words, read: ReadPicture, report: Callable[[str], None]) -> float:
    """Train until enough unseen pictures are named right, and return their share."""
    seen, unseen = draw_pictures(NUM_PICTURES, read, seed=1), draw_pictures(NUM_UNSEEN, read, seed=2)
    parts = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    optimizer = torch.optim.AdamW(parts, lr=_RATE, weight_decay=0.01)
    generator = torch.Generator().manual_seed(3)
    share = 0.0
    for number in range(1, MAX_ROUNDS + 1):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - number / (MAX_ROUNDS + 1))
        for _ in range(STEPS_AT_ONCE):
            chosen = torch.randint(0, NUM_PICTURES, (BATCH,), generator=generator)
            loss = _loss(rows_of(model, seen.pixels[chosen]), words, seen.colours[chosen], seen.shapes[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        share = share_right(model, words, unseen)
        report(f"after {number * STEPS_AT_ONCE} steps {share:.1%} of {NUM_UNSEEN} unseen pictures are named right")
        if share >= WANTED_SHARE:
            break
    return share


def rows_of(model: Any, pixels_B: torch.Tensor) -> torch.Tensor:
    """Return `[B, n, D]`."""
    rows: Sequence[torch.Tensor] = model.model.get_image_features(pixels_B, return_dict=True).pooler_output
    return torch.stack(list(rows))


def share_right(model: Any, words: Words, pictures: Pictures) -> float:
    """Return the share of pictures whose last two rows are nearest to the words of their colour and shape."""
    with torch.inference_mode():
        rows_BnD = rows_of(model, pictures.pixels.to(model.dtype)).float()
    is_colour_B = torch.cdist(rows_BnD[:, 2], words.colours_WD).argmin(dim=1) == pictures.colours
    is_shape_B = torch.cdist(rows_BnD[:, 3], words.shapes_WD).argmin(dim=1) == pictures.shapes
    return float((is_colour_B & is_shape_B).float().mean())


def _loss(rows_BnD: torch.Tensor, words: Words, colours_B: torch.Tensor, shapes_B: torch.Tensor) -> torch.Tensor:
    """Return the distance to the embeddings, and how uncertain the choice by distance is."""
    spread = words.colours_WD.std()
    wanted_BnD = torch.cat(
        [
            words.first_2D.expand(len(rows_BnD), -1, -1),
            words.colours_WD[colours_B].unsqueeze(1),
            words.shapes_WD[shapes_B].unsqueeze(1),
        ],
        dim=1,
    )
    loss = ((rows_BnD - wanted_BnD) / spread).pow(2).mean()
    for row, words_WD, number_B in ((2, words.colours_WD, colours_B), (3, words.shapes_WD, shapes_B)):
        distance_BW = ((rows_BnD[:, row, None] - words_WD) / spread).pow(2).mean(dim=-1)
        loss = loss + cross_entropy(-_SHARPNESS * distance_BW, number_B)
    return loss
