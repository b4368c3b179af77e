"""The pictures of the demo have the shape and the colour that they are drawn with, and a picture becomes four rows."""

import random

import numpy as np
import pytest
import torch

from bench.demo_vision.pictures import COLOURS, SHAPES, SIDE, draw
from bench.demo_vision.tower import Pictures, Words, draw_pictures, make_tower, rows_of, share_right

WIDTH = 24
# Of the square around a shape, the share that the shape fills: pi / 4, all, half.
FILLED = {"circle": 0.785, "square": 1.0, "triangle": 0.5}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_a_picture_holds_one_shape_of_its_colour(shape: str, seed: int) -> None:
    for colour, wanted in COLOURS.items():
        image = draw(random.Random(seed), colour, shape)
        assert image.size == (SIDE, SIDE)
        pixels = torch.from_numpy(np.array(image)).int()
        is_shape = ((pixels - torch.tensor(wanted)).abs() <= 20).all(dim=2)
        rows, columns = is_shape.any(dim=1).nonzero(), is_shape.any(dim=0).nonzero()
        box = int(rows.max() - rows.min() + 1) * int(columns.max() - columns.min() + 1)
        assert int(is_shape.sum()) / box == pytest.approx(FILLED[shape], abs=0.03)


def test_words_at_the_rows_are_named_right_and_others_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    words = Words(*(torch.randn(count, WIDTH, generator=generator) for count in (2, len(COLOURS), len(SHAPES))))
    model = make_tower(WIDTH)
    pictures = draw_pictures(8, lambda image: torch.zeros(3, 32, 32), seed=4)
    assert rows_of(model, pictures.pixels).shape == (8, 4, WIDTH)
    rows = torch.stack(
        [words.first_2D[:1].expand(8, -1)] * 2 + [words.colours_WD[pictures.colours], words.shapes_WD[pictures.shapes]],
        dim=1,
    )
    monkeypatch.setattr("bench.demo_vision.tower.rows_of", lambda model, pixels: rows)
    assert share_right(model, words, pictures) == 1.0
    turned = Pictures(pictures.pixels, (pictures.colours + 1) % len(COLOURS), pictures.shapes)
    assert share_right(model, words, turned) == 0.0
