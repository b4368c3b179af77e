"""From files of images to pixels: limits by the header, first frames, upright, transparent parts on white."""

import io
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from textmill_router.media.worker.picture import PictureRefused, open_picture

from tests.fakes.pictures import picture, png_of_zeros, png_that_lies, saved

MOST = 25_000_000


def refused(data: bytes, max_pixels: int = MOST) -> PictureRefused:
    with pytest.raises(PictureRefused) as found:
        open_picture(data, max_pixels)
    return found.value


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_formats_are_told_by_content(kind: str) -> None:
    data = picture(20, 10, kind=kind)
    opened = open_picture(data, MOST)
    assert (opened.mode, opened.size) == ("RGB", (20, 10))
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "TGA", "ICO", "EPS", "PDF", "PCX"])
def test_other_formats_are_refused(kind: str) -> None:
    assert "PNG, JPEG, WEBP or GIF" in str(refused(picture(20, 10, kind=kind)))


@pytest.mark.parametrize(
    "data", [b"", b"x", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a"]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert not refused(data).is_too_large


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_truncated_data_is_refused(kind: str) -> None:
    data = picture(40, 30, kind=kind)
    for size in (len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        refused(data[:size])


def test_bombs_are_refused_by_their_header() -> None:
    data = png_of_zeros(6000, 6000)
    assert len(data) < 200_000
    tracemalloc.start()
    begin = time.process_time()
    found = refused(data)
    assert found.is_too_large
    assert "6000 x 6000 pixels, the limit is 25000000" in str(found)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    assert time.process_time() - begin < 0.5
    tracemalloc.stop()


def test_a_header_that_lies_is_refused() -> None:
    assert refused(png_that_lies(60_000, 60_000)).is_too_large
    assert "cannot be decoded" in str(refused(png_that_lies(4000, 4000)))


@pytest.mark.parametrize("size", [(1, 201), (201, 1), (300, 1), (2, 401)])
def test_odd_sides_are_refused(size: tuple[int, int]) -> None:
    assert "200 times the other" in str(refused(picture(*size)))


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 600)])
def test_small_sides_pass(size: tuple[int, int]) -> None:
    assert open_picture(picture(*size), MOST).size == size


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "I;16", "LA", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kinds = {"CMYK": "JPEG", "YCbCr": "JPEG"}
    image = Image.open(io.BytesIO(picture(12, 8))).convert("L" if mode == "I;16" else "RGB").convert(mode)
    assert open_picture(saved(image, kinds.get(mode, "PNG")), MOST).mode == "RGB"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (200, 200, 200, 255))
    image.putpixel((1, 1), (0, 0, 0, 0))
    image.putpixel((2, 2), (0, 0, 0, 128))
    opened = open_picture(saved(image.convert(mode) if mode != "P" else image.quantize(4), "PNG"), MOST)
    assert opened.getpixel((1, 1)) == (255, 255, 255)
    assert opened.getpixel((0, 0)) == (200, 200, 200)
    if mode != "P":
        assert opened.getpixel((2, 2)) == (127, 127, 127)


def test_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = saved(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert open_picture(data, MOST).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (5, 3)), (6, (3, 0)), (8, (0, 5))])
def test_images_are_turned_upright(orientation: int, corner: tuple[int, int]) -> None:
    """The places of the first pixel follow from the table of orientations in the Exif standard."""
    image = Image.new("RGB", (6, 4), "white")
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_picture(saved(image, "PNG", exif=exif), MOST)
    assert opened.size == ((6, 4) if orientation in (1, 3) else (4, 6))
    assert opened.getpixel(corner) == (0, 0, 0)


def test_texts_beside_the_pixels_are_bounded() -> None:
    import zlib
    from struct import pack

    text = b"k\0\0" + zlib.compress(bytes(200 << 20))
    chunk = pack(">I", len(text)) + b"zTXt" + text + pack(">I", zlib.crc32(b"zTXt" + text))
    data = picture(4, 4)
    refused(data[:33] + chunk + data[33:])
