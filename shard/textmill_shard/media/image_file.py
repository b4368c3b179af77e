"""Decodes the bytes of an image file to RGB, after its header has told that the picture is not too large."""

# H height, W width, both in pixels

import io
import logging
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from textmill_shard.media.errors import MediaError
from textmill_shard.media.png_rows import has_all_rows

log = logging.getLogger(__name__)

# Formats whose readers are complete, and run no other program; the reader of JPEG reads MPO too. The last two have no
# mark at their beginning.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "QOI"),
    *("PCX", "TGA"),
)
# Beginnings of files that are refused by the name of their format.
_REFUSED = (
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"8BPS", "PSD"),
    (b"SIMPLE  =", "FITS"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "SVG"),
)
_WIDE_GRAY = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def prepare_images(*, max_pixels: int) -> None:
    """Let Pillow refuse pictures inside of other files (ICO), where no caller sees their size. Called once."""
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # about damaged parts that do not matter
    Image.init()


def decode_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Return the first frame as RGB, turned as EXIF says, with transparency on black.

    Raises MediaError, and MemoryError for an image that the memory does not hold.
    """
    beginning = data[:64].lstrip()
    for mark, name in _REFUSED:
        if beginning.startswith(mark):
            raise MediaError(f"the file is of the format {name}, readable are {', '.join(FORMATS)}")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            _check_size(width, height, max_pixels)
            opened.load()
            if opened.format == "PNG" and _may_lack_rows(opened) and not has_all_rows(data):
                raise MediaError("the image cannot be decoded (its rows end too early)")
            _turn(opened)
            return _to_rgb(opened)
    except (MediaError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"the image has more than {max_pixels} pixels (--max-image-pixels)") from error
    except UnidentifiedImageError as error:
        raise MediaError(f"the file is no image of a known format: {', '.join(FORMATS)}") from error
    except Exception as error:  # each reader raises exceptions of its own at damaged files
        raise MediaError(f"the image cannot be decoded ({type(error).__name__}: {error})") from error


def _may_lack_rows(image: Image.Image) -> bool:
    """Whether one of the last two rows is zeros throughout, as Pillow leaves the rows that a PNG lacks."""
    rows = range(max(0, image.height - 2), image.height)
    return any(not any(image.crop((0, row, image.width, row + 1)).tobytes()) for row in rows)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise MediaError(f"the image has {width} x {height} pixels")
    if width * height > max_pixels:
        raise MediaError(
            f"the image has {width} x {height} pixels, the limit is {max_pixels} in all (--max-image-pixels)"
        )


def _turn(image: Image.Image) -> None:
    """Turn the picture in its place, because a copy of a large picture takes as much memory again."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception as error:  # damaged EXIF data says nothing about the orientation
        log.debug("an image has EXIF data that cannot be read", extra={"error": type(error).__name__})


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE_GRAY:
        # Pillow would cut 16 bits at 255. All of them are scaled, as for pictures of 8 bits.
        values_HW = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((values_HW // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        black = Image.new("RGBA", with_alpha.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, with_alpha).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
