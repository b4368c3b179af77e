"""Files of images: random ones in each format, and such as no client should send."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def picture(width: int, height: int, *, seed: int = 0, kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """Return a file with random pixels."""
    depth = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *depth), dtype=np.uint8)
    return saved(Image.fromarray(pixels, mode), kind, **options)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the file of an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_zeros(width: int, height: int) -> bytes:
    """Return a PNG of black pixels whose data are a thousandth of the pixels, written without the pixels in memory."""
    packer = zlib.compressobj(9)
    row = bytes(1 + width * 3)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return _png(width, height, data)


def png_that_lies(width: int, height: int) -> bytes:
    """Return a PNG whose header tells of more pixels than the file has."""
    return _png(width, height, zlib.compress(bytes(1 + 3 * 4) * 4))


def _png(width: int, height: int, data: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
