"""From the bytes of an image to pixels in RGB. The limits are checked by the header, before anything is decoded."""

import io

from PIL import Image, ImageOps

from textmill_router.media.limits import MAX_SIDE_RATIO

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


class PictureRefused(Exception):
    """The image cannot be used. The text says why; `is_too_large` tells a limit from a fault."""

    def __init__(self, reason: str, *, is_too_large: bool = False) -> None:
        super().__init__(reason)
        self.is_too_large = is_too_large


def open_picture(data: bytes, max_pixels: int) -> Image.Image:
    """Return the first frame in RGB, upright, with transparent parts on white. Raises PictureRefused."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        message = f"it has more pixels than the limit, {max_pixels} in all (--max-image-pixels)"
        raise PictureRefused(message, is_too_large=True) from None
    except Exception as error:  # the library has many, also for headers that lie
        raise PictureRefused(f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from error
    _check_size(image.width, image.height, max_pixels)
    try:
        ImageOps.exif_transpose(image, in_place=True)  # upright images are not copied
        return _flat(image)
    except MemoryError:
        raise PictureRefused("it needs too much memory", is_too_large=True) from None
    except Exception as error:
        raise PictureRefused(f"its {image.format} data cannot be decoded") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise PictureRefused(f"it has {width} x {height} pixels")
    if width * height > max_pixels:
        raise PictureRefused(
            f"it has {width} x {height} pixels, the limit is {max_pixels} in all (--max-image-pixels)",
            is_too_large=True,
        )
    if max(width, height) > MAX_SIDE_RATIO * min(width, height):
        raise PictureRefused(
            f"it has {width} x {height} pixels, and one side may be at most {MAX_SIDE_RATIO} times the other"
        )


def _flat(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")
