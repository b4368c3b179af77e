"""How many images a request may have, and how large an image may be."""

from dataclasses import dataclass

MAX_SIDE_RATIO = 200  # longer side / shorter side


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The flags `--max-images`, `--max-image-bytes`, `--max-image-pixels` and `--max-image-tokens`.

    `max_pixels` counts width x height as the header says, and `max_tokens` the tokens that one image becomes.
    """

    max_images: int = 8
    max_bytes: int = 20 << 20
    max_pixels: int = 25_000_000
    max_tokens: int = 4096
