"""The files of a call: the bytes of a body, or base64 in JSON. Nothing is fetched, and no path is opened."""

import asyncio
import binascii
import re
from dataclasses import dataclass, field

from textmill_router.errors import ValidationFailed

LONG_TEXT = 1 << 18  # characters of base64 that are decoded in a thread, because they would hold up other calls
_PIECE = 1 << 20  # characters decoded at a time, so that other threads have turns; a multiple of 4
_DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w.+-]+=[^;,]*)*;base64,")
_ADDRESS = re.compile(r"(?:https?|ftp)://|file:", re.IGNORECASE)
_BLANKS = str.maketrans("", "", "\r\n")


@dataclass(frozen=True, slots=True)
class FileInput:
    """One file: its bytes, or a text of base64. `texts` are about the file. Paths name file and texts in errors."""

    content: bytes | str = field(repr=False)
    path: str = "inputs"
    texts: tuple[str, ...] = field(default=(), repr=False)
    texts_path: str = ""

    def check(self) -> None:
        """Check all that needs no decoding. Raises ValidationFailed."""
        if not self.content:
            raise ValidationFailed(f"`{self.path}` is empty; send the bytes of a file", field=self.path)
        if isinstance(self.content, str) and _ADDRESS.match(self.content):
            raise ValidationFailed(
                f"`{self.path}` is an address, and the server fetches nothing: send the bytes of the file, in JSON as "
                "base64",
                field=self.path,
            )

    async def read(self) -> bytes:
        """Return the bytes. Raises ValidationFailed for a text that is no base64."""
        if isinstance(self.content, bytes):
            return self.content
        if len(self.content) < LONG_TEXT:
            return _decoded(self.content, self.path)
        return await asyncio.to_thread(_decoded, self.content, self.path)


def _decoded(text: str, path: str) -> bytes:
    found = _DATA_URL.match(text)
    if found is not None:
        text = text[found.end() :]
    text = text.translate(_BLANKS) if "\n" in text else text
    text += "=" * (-len(text) % 4)  # padding may lack
    try:
        pieces = [
            binascii.a2b_base64(text[start : start + _PIECE], strict_mode=True) for start in range(0, len(text), _PIECE)
        ]
    except ValueError as error:  # binascii.Error, or a character beyond ASCII
        raise ValidationFailed(f"`{path}` must be a file in base64: {error}", field=path) from None
    file = b"".join(pieces)
    if not file:
        raise ValidationFailed(f"`{path}` is empty; send the bytes of a file", field=path)
    return file
