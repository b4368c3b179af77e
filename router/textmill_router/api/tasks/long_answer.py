"""Writes a long answer in pieces, so that no other call waits while the whole answer is copied."""

from collections.abc import Iterator

import msgspec

from textmill_router.tasks.row_results import Grid

PIECE_BYTES = 4 << 20  # of a piece, which ends with the part that reaches so many
_ENCODER = msgspec.json.Encoder()


def json_pieces(value: object) -> Iterator[bytes]:
    """Yield the JSON of a value, where a Grid stands for its rows as lists. Characters are never cut."""
    held: list[bytes] = []
    num_bytes = 0
    for part in _parts(value):
        held.append(part)
        num_bytes += len(part)
        if num_bytes >= PIECE_BYTES:
            yield b"".join(held)
            held, num_bytes = [], 0
    if held:
        yield b"".join(held)


def _parts(value: object) -> Iterator[bytes]:
    match value:
        case Grid(width=width, values=values):
            yield b"["
            for start in range(0, len(values), width):
                yield (b"," if start else b"") + _ENCODER.encode(values[start : start + width].tolist())
            yield b"]"
        case list():
            yield b"["
            for index, each in enumerate(value):
                yield b"," if index else b""
                yield from _parts(each)
            yield b"]"
        case dict():
            yield b"{"
            for index, (name, each) in enumerate(value.items()):
                yield (b"," if index else b"") + _ENCODER.encode(name) + b":"
                yield from _parts(each)
            yield b"}"
        case _:
            yield _ENCODER.encode(value)
