"""Copies and parts of encodings, because the library cuts an encoding in place."""

import tokenizers


def copy_of(encoding: tokenizers.Encoding) -> tokenizers.Encoding:
    """Return an encoding that can be cut, while the given one stays as it is."""
    return tokenizers.Encoding.merge([encoding], growing_offsets=False)


def part_of(encoding: tokenizers.Encoding, start: int, stop: int) -> tokenizers.Encoding:
    """Return an encoding of the tokens from `start` up to `stop`, and leave the given encoding as it is."""
    if start == 0 and stop == len(encoding.ids):
        return encoding
    part = copy_of(encoding)
    part.truncate(stop)
    part.truncate(stop - start, direction="left")
    return part
