"""Files of pictures written by hand, and hostile ones with a part of the sentence that refuses each of them."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def picture(mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> Image.Image:
    """Return a picture whose pixels all differ."""
    width, height = size
    pixels = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(pixels).convert(mode)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def png(width: int, height: int, *, bits: int = 8, color: int = 2, body: bytes = b"") -> bytes:
    """Write a PNG by hand, of any size, with this compressed body."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


# What is refused where at most 50 million pixels are read.
HOSTILE_PICTURES = {
    "40,000 x 40,000 told by the header": (png(40_000, 40_000), "more than 50000000 pixels"),
    "a bomb of zeros": (png(30_000, 30_000, body=zlib.compress(bytes(30_000_000), 9)), "more than 50000000 pixels"),
    "8,000 x 8,000": (png(8_000, 8_000), "8000 x 8000 pixels, the limit is 50000000|more than 50000000 pixels"),
    "no width": (png(0, 10), "pixels|decoded|known format"),
    "2 billion columns": (png(2**31 - 1, 2**31 - 1), "more than 50000000 pixels|decoded"),
    "cut in the middle": (encode(picture(size=(300, 300)), "PNG")[:200], "cannot be decoded"),
    "a JPEG without its end": (encode(picture(size=(300, 300)), "JPEG")[:900], "cannot be decoded"),
    "a header alone": (b"\x89PNG\r\n\x1a\n", "no image of a known format"),
    "a body that is no zlib": (png(4, 4, body=b"hello"), "cannot be decoded"),
    "nothing": (b"", "no image of a known format"),
    "a text": (b"hello", "no image of a known format"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "format SVG"),
    "SVG behind a declaration": (b"<?xml version='1.0'?><svg/>", "format SVG"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "format EPS"),
    "PSD": (b"8BPS\0\1", "format PSD"),
    "FITS": (b"SIMPLE  =                    T", "format FITS"),
    "WMF": (b"\xd7\xcd\xc6\x9a\0\0", "format WMF"),
}
