"""Finds stop strings in the output of one request as the output grows, wherever tokens begin and end.

The match is the one that ends first, and among matches that end at one place the longest. Therefore the result depends
on the text alone, and not on how tokens cut the text.

Special tokens take part in the search with their text although answers do not show them, because a client may stop at
`<|im_end|>`. So a stop string may also hold a special token's text between other characters, and a special token in the
middle of a stop string's characters keeps them from matching, as in text-generation-inference.
"""

from collections.abc import Sequence


class StopStrings:
    """Takes the output piece by piece and says which text may be shown.

    With `keep_match` the text ends right after the match, and nothing is held back. Without `keep_match` the text ends
    before the match, and text that could become a match is held back until that is decided. Hidden pieces (special
    tokens) are searched like all others and are never part of the text that may be shown.
    """

    __slots__ = ("_held", "_hidden", "_keep_match", "_starts", "_stops", "began_earlier", "is_matched", "matched")

    def __init__(self, stops: Sequence[str], keep_match: bool) -> None:
        assert all(stops), "an empty stop string matches everything"
        self._stops = tuple(dict.fromkeys(stops))
        self._starts = frozenset(stop[0] for stop in self._stops)
        self._keep_match = keep_match
        self._held = ""  # the longest end of the output that begins a stop string
        self._hidden: list[tuple[int, int]] = []  # (start, end) in `_held` of what is not shown
        self.is_matched = False
        self.matched = ""  # the stop string that was found
        self.began_earlier = False  # the match begins before the piece in which it ends

    def push(self, piece: str, is_hidden: bool = False) -> str:
        """Return the text that may be shown because of this piece. After a match nothing may be pushed."""
        assert not self.is_matched
        if not piece:
            return ""
        held = self._held
        if not held and self._starts.isdisjoint(piece):
            return "" if is_hidden else piece
        text = held + piece
        if is_hidden:
            self._hidden.append((len(held), len(text)))
        span = self._find(text)
        if span is not None:
            self.is_matched = True
            self.matched = text[span[0] : span[1]]
            self.began_earlier = span[0] < len(held)
            return self._shown(text, len(held), span[1]) if self._keep_match else self._shown(text, 0, span[0])
        self._held = self._possible_start(text)
        start = len(text) - len(self._held)
        shown = self._shown(text, len(held), len(text)) if self._keep_match else self._shown(text, 0, start)
        if self._hidden:
            self._hidden = [(max(0, first - start), end - start) for first, end in self._hidden if end > start]
        return shown

    def flush(self) -> str:
        """Return the text that was held back, for use when nothing more will come."""
        held, self._held = self._held, ""
        return "" if self._keep_match else self._shown(held, 0, len(held))

    def _shown(self, text: str, start: int, end: int) -> str:
        """Return `text[start:end]` without the hidden pieces."""
        shown = []
        for first, last in self._hidden:
            if first >= end:
                break
            shown.append(text[start:first])
            start = max(start, last)
        return "".join([*shown, text[start:end]])

    def _find(self, text: str) -> "tuple[int, int] | None":
        """Return (start, end) of the match in the text, which begins no earlier than the text that was held back."""
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
        """Return the longest proper beginning of a stop string with which the text ends."""
        longest = ""
        for stop in self._stops:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while start >= 0 and len(text) - start > len(longest):
                if stop.startswith(text[start:]):
                    longest = text[start:]
                    break
                start = text.find(stop[0], start + 1)
        return longest
