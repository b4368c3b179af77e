"""Windows of a long text: which tokens each window has, and which window speaks for a token."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """A run of tokens of a text, from `start` up to and without `stop`."""

    start: int
    stop: int


def windows_of(num_tokens: int, room: int | None, stride: int) -> list[Window]:
    """Return windows of at most `room` tokens that overlap by `stride`, and cover the text; one where all fits.

    `room` must be larger than `stride`.
    """
    if room is None or num_tokens <= room:
        return [Window(0, num_tokens)]
    assert room > stride
    found = []
    start = 0
    while True:
        stop = min(start + room, num_tokens)
        found.append(Window(start, stop))
        if stop == num_tokens:
            return found
        start += room - stride


def wanted_tokens(windows: Sequence[Window]) -> list[range]:
    """Return the tokens for which each window speaks, as places in the text. Each token belongs to one window.

    In an overlap a token belongs to the window in which the token is farther from the end that the two windows share:
    the first half to the earlier window, the other half to the later one.
    """
    borders = [0]
    for earlier, later in itertools.pairwise(windows):
        borders.append((later.start + earlier.stop + 1) // 2)
    borders.append(windows[-1].stop)
    return [range(start, stop) for start, stop in itertools.pairwise(borders)]
