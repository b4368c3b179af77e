"""Finds stop strings in the output text of one request as it grows, wherever tokens begin and end.

A match is the one that ends first; of several that end at the same place the longest. So the result depends on the text
alone, not on how it was cut into tokens.
"""

from collections.abc import Sequence


class StopStrings:
    """Fed piece by piece; says what may be shown.

    `keep_match` True: the text ends right after the match and nothing is held back. False: it ends before the match,
    and what could become a match is held back until it is one or cannot be any more.
    """

    __slots__ = ("_held", "_keep_match", "_starts", "_stops", "is_matched")

    def __init__(self, stops: Sequence[str], keep_match: bool) -> None:
        assert all(stops), "an empty stop string matches everything"
        self._stops = tuple(dict.fromkeys(stops))
        self._starts = frozenset(stop[0] for stop in self._stops)
        self._keep_match = keep_match
        self._held = ""  # the longest end of the text that begins a stop string
        self.is_matched = False

    def push(self, piece: str) -> str:
        """Text that this piece sets free. After a match nothing may be pushed."""
        assert not self.is_matched
        if not piece:
            return ""
        held = self._held
        if not held and self._starts.isdisjoint(piece):
            return piece
        text = held + piece
        span = self._find(text)
        if span is not None:
            self.is_matched = True
            self._held = ""
            return text[len(held) : span[1]] if self._keep_match else text[: span[0]]
        self._held = self._possible_start(text)
        return piece if self._keep_match else text[: len(text) - len(self._held)]

    def flush(self) -> str:
        """What was held back, when nothing more will come."""
        held, self._held = self._held, ""
        return "" if self._keep_match else held

    def _find(self, text: str) -> "tuple[int, int] | None":
        """(start, end) of the match in the text. A match cannot start before what was held back."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start < 0:
                continue
            end = start + len(stop)
            if best is None or end < best[1] or (end == best[1] and start < best[0]):
                best = (start, end)
        return best

    def _possible_start(self, text: str) -> str:
        """The longest proper beginning of a stop string that the text ends with."""
        longest = ""
        for stop in self._stops:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while start >= 0 and len(text) - start > len(longest):
                if stop.startswith(text[start:]):
                    longest = text[start:]
                    break
                start = text.find(stop[0], start + 1)
        return longest
