"""Images in `data:` URLs: strict base64 of an image, whose size is checked before anything is decoded."""

import asyncio
import base64

import pytest
from textmill_router.errors import ImageCode, ImageRefused
from textmill_router.media.data_url import data_of

FIELD = "messages[0].content[1].image_url"


def read(url: str, max_bytes: int = 1000) -> bytes:
    return asyncio.run(data_of(url, field=FIELD, max_bytes=max_bytes))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 600_001])
def test_base64_is_decoded(size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    assert read(f"data:image/png;base64,{base64.b64encode(data).decode()}", 10**6) == data


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png,abcd",
        "data:text/plain;base64,abcd",
        "data:image/png;charset=x;base64,abcd",
        "data:;base64,abcd",
        "data:image/png;base64,ab-_",  # the alphabet of URLs
        "data:image/png;base64,abcd\nabcd",
        "data:image/png;base64,abc",
        "data:image/png;base64,ab==abcd",
        "data:image/png;base64,ab====",
        "data:image/png;base64,äbcd",
        "data:image/png;base64," + "a" * (256 * 1024 - 2) + "==" + "abcd",  # padding where two parts meet
    ],
)
def test_all_else_is_refused(url: str) -> None:
    with pytest.raises(ImageRefused) as refusal:
        read(url, 10**6)
    assert (refusal.value.code, refusal.value.field) == (ImageCode.INVALID, FIELD)
    assert f"`{FIELD}`" in str(refusal.value)


@pytest.mark.parametrize("size", [1001, 1002, 5000])
def test_more_bytes_than_the_limit_are_refused(size: int) -> None:
    with pytest.raises(ImageRefused, match=r"at most 1000 bytes \(--max-image-bytes\)") as refusal:
        read(f"data:image/png;base64,{base64.b64encode(bytes(size)).decode()}")
    assert refusal.value.code is ImageCode.TOO_LARGE


def test_a_long_text_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageRefused, match="max-image-bytes"):
        read("data:image/png;base64," + "!" * 5000)  # no base64 at all
