"""Draws pictures of one shape in one colour, as the images of the demo and of its test."""

import random
from collections.abc import Mapping

from PIL import Image, ImageDraw

# Each word is one token of the demo model, behind a space.
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle")
SIDE = 128  # pixels of a picture
_LEAST, _MOST, _MARGIN = 44, 100, 4  # sides of a shape, and what is left around
_DRIFT = 20  # by which a colour varies
_LIGHT = 200  # of the background at least


def draw(drawn: random.Random, colour: str, shape: str) -> Image.Image:
    """Return a picture with the shape anywhere, in any size, on a light background."""
    image = Image.new("RGB", (SIDE, SIDE), _rgb([drawn.randint(_LIGHT, 255) for _ in range(3)]))
    pen = ImageDraw.Draw(image)
    size = drawn.randint(_LEAST, _MOST)
    left, top = (drawn.randint(_MARGIN, SIDE - _MARGIN - size) for _ in range(2))
    right, bottom = left + size, top + size
    fill = _rgb([part + drawn.randint(-_DRIFT, _DRIFT) for part in COLOURS[colour]])
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=fill)
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill=fill)
    else:
        pen.polygon([(left + size / 2, top), (right, bottom), (left, bottom)], fill=fill)
    return image


def _rgb(parts: list[int]) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, part)) for part in parts)
    return red, green, blue
