"""Whether the pixels of a PNG reach to its last row, which Pillow does not tell of a stream that ends in good order."""

import zlib
from collections.abc import Iterator

_SIGNATURE_BYTES = 8
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type
# Of an interlaced picture the first column and row of each pass, and the steps between columns and rows.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_BLOCK_BYTES = 1 << 18


def has_all_rows(data: bytes) -> bool:
    """Whether the compressed stream of a PNG that Pillow has read holds all bytes of its rows."""
    header = b""
    parts = []
    for kind, content in _chunks(data):
        if kind == b"IHDR":
            header = content
        elif kind == b"IDAT":
            parts.append(content)
    width, height = (int.from_bytes(header[start : start + 4], "big") for start in (0, 4))
    wanted = _num_bytes(width, height, bits=header[8] * _CHANNELS[header[9]], is_interlaced=header[12] == 1)
    return _holds(b"".join(parts), wanted)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = _SIGNATURE_BYTES
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length


def _num_bytes(width: int, height: int, *, bits: int, is_interlaced: bool) -> int:
    """Return the bytes of all rows, each with one more for its filter."""
    total = 0
    for column, row, columns, rows in _PASSES if is_interlaced else ((0, 0, 1, 1),):
        own_width, own_height = -(-(width - column) // columns), -(-(height - row) // rows)
        if own_width > 0 and own_height > 0:
            total += own_height * (1 + -(-own_width * bits // 8))
    return total


def _holds(stream: bytes, wanted: int) -> bool:
    """Whether a stream holds so many bytes; they are counted block by block and not kept."""
    decompressor = zlib.decompressobj()
    found = 0
    while found < wanted and stream and not decompressor.eof:
        try:
            found += len(decompressor.decompress(stream, _BLOCK_BYTES))
        except zlib.error:
            return False
        stream = decompressor.unconsumed_tail
    return found >= wanted
