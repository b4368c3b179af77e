"""Images in `data:` URLs, which are standard base64 and nothing else."""

import asyncio
import binascii
import re

from textmill_router.errors import ImageCode, ImageRefused

_HEAD = re.compile(r"data:image/[\w.+-]{1,64};base64,", re.IGNORECASE | re.ASCII)
# The decoder holds Python's global lock, so a long text is decoded in parts, between which other threads run.
_PART_CHARACTERS = 256 * 1024
INLINE_CHARACTERS = 16 * 1024  # decoded on the event loop; longer texts go to a thread


def is_data_url(url: str) -> bool:
    """Whether the URL holds its data itself."""
    return url[:5].lower() == "data:"


async def data_of(url: str, *, field: str, max_bytes: int) -> bytes:
    """Return the bytes of an image in a `data:` URL. The size is checked before anything is decoded.

    Raises ImageRefused with the `field` of the URL.
    """
    head = _HEAD.match(url)
    if head is None:
        raise ImageRefused(
            f"`{field}` must be data:image/<type>;base64, and then the image in base64, found another data URL",
            field=field,
            code=ImageCode.INVALID,
        )
    num_characters = len(url) - head.end()
    if num_characters * 3 // 4 - 2 > max_bytes:
        raise too_many_bytes(field, max_bytes)
    if num_characters <= INLINE_CHARACTERS:
        data = _decode(url, head.end(), field)
    else:
        data = await asyncio.to_thread(_decode, url, head.end(), field)
    if len(data) > max_bytes:
        raise too_many_bytes(field, max_bytes)
    return data


def too_many_bytes(field: str, max_bytes: int) -> ImageRefused:
    """Return the refusal of an image that is too long as it is encoded."""
    return ImageRefused(
        f"`{field}`: the image must have at most {max_bytes} bytes (--max-image-bytes); send a smaller one",
        field=field,
        code=ImageCode.TOO_LARGE,
    )


def _decode(url: str, start: int, field: str) -> bytes:
    parts: list[bytes] = []
    try:
        for begin in range(start, len(url), _PART_CHARACTERS):
            part = url[begin : begin + _PART_CHARACTERS]
            is_last = begin + _PART_CHARACTERS >= len(url)
            if not is_last and "=" in part:
                raise binascii.Error("padding stands before the end")
            parts.append(binascii.a2b_base64(part, strict_mode=True))
    except ValueError as error:  # binascii.Error, and characters that are not ASCII
        message = f"`{field}` is not standard base64: {error}"
        raise ImageRefused(message, field=field, code=ImageCode.INVALID) from None
    return b"".join(parts)
