"""Pictures of each format come out as their pixels, and hostile files end with a sentence, soon and cheaply."""

import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from textmill_shard.media.errors import MediaError
from textmill_shard.media.image_file import decode_image, prepare_images
from textmill_shard.media.png_rows import has_all_rows

from tests.fakes.hostile_pictures import HOSTILE_PICTURES, encode, picture, png

MAX_PIXELS = 50_000_000


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    before = Image.MAX_IMAGE_PIXELS
    prepare_images(max_pixels=MAX_PIXELS)
    yield
    Image.MAX_IMAGE_PIXELS = before


def pixels(data: bytes, max_pixels: int = MAX_PIXELS) -> "np.ndarray[Any, Any]":
    return np.asarray(decode_image(data, max_pixels=max_pixels))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA", "PCX", "QOI"])
def test_a_format_without_loss_gives_its_pixels(kind: str) -> None:
    np.testing.assert_array_equal(pixels(encode(picture(), kind)), np.asarray(picture()))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "AVIF", "JPEG2000", "ICO", "MPO"])
def test_a_format_with_loss_gives_a_picture_of_its_size(kind: str) -> None:
    assert pixels(encode(picture(size=(32, 16)), kind)).shape[2] == 3


def test_a_file_that_lies_about_nothing_is_found_by_its_content() -> None:
    np.testing.assert_array_equal(pixels(encode(picture(), "WEBP", lossless=True)), pixels(encode(picture(), "PNG")))


def test_the_orientation_of_exif_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture has to be turned by 90 degrees, clockwise
    turned = pixels(encode(picture(), "PNG", exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(picture()), k=-1))


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
def test_damaged_exif_data_is_no_orientation() -> None:
    data = encode(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff" * 40)
    assert pixels(data).shape == (6, 8, 3)


def test_transparent_pixels_become_black() -> None:
    image = picture("RGBA")
    image.putalpha(Image.fromarray(np.array([[0] * 4 + [255] * 4] * 6, dtype=np.uint8)))
    found = pixels(encode(image, "PNG"))
    assert (found[:, :4] == 0).all()
    np.testing.assert_array_equal(found[:, 4:], np.asarray(picture())[:, 4:])


def test_a_transparent_colour_of_a_palette_becomes_black() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert pixels(encode(image, "PNG", transparency=0)).tolist() == [[[0, 0, 0], [0, 255, 0]]]


def test_16_bits_are_scaled_and_not_cut() -> None:
    image = Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16))
    assert pixels(encode(image, "PNG"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_becomes_rgb() -> None:
    assert pixels(encode(picture("CMYK", (32, 32)), "JPEG")).shape == (32, 32, 3)


def test_one_pixel_is_a_picture() -> None:
    assert pixels(encode(picture(size=(1, 1)), "PNG")).shape == (1, 1, 3)


def test_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:] * 300)
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", HOSTILE_PICTURES)
def test_a_hostile_picture_ends_with_a_sentence(name: str) -> None:
    data, message = HOSTILE_PICTURES[name]
    tracemalloc.start()
    began_s = time.process_time()
    with pytest.raises(MediaError, match=message):
        pixels(data)
    assert time.process_time() - began_s < 1.0
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("color", [0, 2, 6])
@pytest.mark.parametrize("num_rows", [0, 1, 29, 30])
def test_a_png_whose_stream_ends_too_early_in_good_order_is_refused(color: int, num_rows: int) -> None:
    """Rows of white behind a filter byte of 0. A stream of all 30 rows is whole, also where its last rows are black."""
    row = b"\0" + b"\xff" * (20 * {0: 1, 2: 3, 6: 4}[color])
    data = png(20, 30, color=color, body=zlib.compress(row * num_rows))
    if num_rows < 30:
        with pytest.raises(MediaError, match=r"rows end too early|truncated"):
            pixels(data)
        return
    assert pixels(data).min() == 255
    black = png(20, 30, color=color, body=zlib.compress(row * 20 + bytes(len(row) * 10)))
    assert pixels(black)[-1].max() == 0


def test_a_png_in_passes_is_whole_at_its_last_byte() -> None:
    """Of 9 x 7 pixels in 8 bits the passes have rows of 2, 1, 3, 3, 5, 4 and 9 pixels (PNG specification, 8.2)."""
    passes = ((2, 1), (1, 1), (3, 1), (2, 2), (5, 2), (4, 4), (9, 3))
    body = b"".join((b"\0" + bytes(width)) * height for width, height in passes)
    for missing, is_whole in ((0, True), (1, False)):
        data = bytearray(png(9, 7, color=0, body=zlib.compress(body[: len(body) - missing])))
        data[28] = 1  # interlaced
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        assert has_all_rows(bytes(data)) == is_whole


def test_a_large_picture_inside_of_an_icon_is_refused() -> None:
    inside = png(20_000, 20_000)
    directory = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22)
    with pytest.raises(MediaError, match=r"pixels|decoded"):
        pixels(directory + inside)


def test_noise_behind_any_beginning_is_refused_or_read_but_never_anything_else() -> None:
    noise = random.Random(4)
    kinds = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "PPM", "TGA", "PCX", "QOI", "JPEG2000", "AVIF")
    for kind in kinds:
        whole = encode(picture(size=(40, 30)), kind)
        for _ in range(25):
            broken = bytearray(whole)
            for _ in range(noise.randrange(1, 9)):
                broken[noise.randrange(len(broken))] = noise.randrange(256)
            try:
                found = pixels(bytes(broken[: noise.randrange(8, len(broken) + 1)]), max_pixels=100_000)
            except MediaError:
                continue
            assert found.size <= 300_000


_HUNGRY = """
import io
import resource
from PIL import Image
from textmill_shard.media.image_file import decode_image, prepare_images

def picture(side):
    file = io.BytesIO()
    Image.new("RGB", (side, side), (0, 100, 200)).save(file, "JPEG")
    return file.getvalue()

prepare_images(max_pixels=50_000_000)
small, large = picture(20), picture(7000)
used = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)  # the large picture takes 196 MB
for data in (large, small):
    try:
        print(decode_image(data, max_pixels=50_000_000).size)
    except MemoryError:
        print("no memory")
"""


def test_an_image_that_the_memory_does_not_hold_is_not_blamed() -> None:
    done = subprocess.run([sys.executable, "-c", _HUNGRY], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "no memory\n(20, 20)\n"), done.stderr


def test_an_image_that_finds_no_memory_to_be_turned_is_not_left_unturned(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageOps, "exif_transpose", no_memory)
    with pytest.raises(MemoryError):
        decode_image(encode(picture(), "PNG"), max_pixels=100)
