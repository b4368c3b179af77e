"""Keeps text of users and tools from becoming special tokens, whatever a chat template does with it.

Before rendering, a mark is put into each special token's text that a message holds, and at the ends of texts that could
become one together with what the template puts beside them. After rendering, the prompt is cut at the marks that stand
inside a special token's text; the pieces are encoded one by one. What holds no such text passes unchanged.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from typing import Any

from textmill_router.chat.marked_text import MARK, MarkedText


class _Searched:
    """A set of texts of tokens, ready to be looked for."""

    def __init__(self, texts: Collection[str]) -> None:
        ordered = sorted({text for text in texts if text}, key=len, reverse=True)
        expression = _expression(ordered)
        self.texts = tuple(ordered)
        self.pattern = re.compile(expression)
        self.first_characters = re.compile(f"(?={expression})(.)", re.DOTALL)
        self._beginnings = frozenset(text[:end] for text in ordered for end in range(1, len(text)))
        self._endings = frozenset(text[start:] for text in ordered for start in range(1, len(text)))
        self._longest = len(ordered[0]) if ordered else 0

    def open_ends(self, text: str) -> "tuple[bool, bool]":
        """Whether the start could end one of the texts, and whether the end could begin one."""
        longest = min(self._longest, len(text) + 1)
        return (
            any(text[:size] in self._endings for size in range(1, longest)),
            any(text[-size:] in self._beginnings for size in range(1, longest)),
        )


class RoleSafety:
    """For one vocabulary: the texts that its tokenizer reads as special tokens, and those of markup.

    Nobody's text may become a special token. Markup (`<think>`, `<tool_call>` where they are no special tokens) may
    stand in what is the model's own or its operator's: they write it to be read as such.
    """

    def __init__(
        self,
        special_texts: Collection[str],
        markup_texts: Collection[str] = (),
        *,
        normalize: Callable[[str], str] | None = None,
    ) -> None:
        """`normalize` is what the tokenizer does to a text before it looks for these tokens; None: nothing."""
        self._special = _Searched(special_texts)
        self._all = _Searched([*special_texts, *markup_texts]) if markup_texts else self._special
        self._normalize = normalize

    def forges(self, role: str) -> bool:
        """Whether a role's name holds or completes a special token's text: templates write `<|` + role + `|>`."""
        return any(role in text or text in role for text in self._all.texts)

    def guard(self, value: Any, *, keeps_markup: bool = False) -> Any:
        """A JSON value with marks in its strings; the value itself when it needs none."""
        searched = self._special if keeps_markup else self._all
        if not self._needs_marks(value, searched):
            return value
        return self._marked(value, searched)

    def cut(self, rendered: str) -> tuple[str, ...]:
        """The pieces to encode one by one; joined they are the prompt. One piece when nothing was forged."""
        parts = str.split(rendered, MARK)  # of a MarkedText too, whose own `split` sees no marks
        if len(parts) == 1:
            return (rendered,)
        joints: list[int] = []
        end = 0
        for part in parts[:-1]:
            end += len(part)
            joints.append(end)
        text = "".join(parts)
        cuts: list[int] = []
        for start, stop in self._occurrences(text):
            first = bisect_right(joints, start)
            if first < len(joints) and joints[first] < stop:
                cuts.append(joints[first])
        edges = [0, *sorted(set(cuts)), len(text)]
        return tuple(text[start:stop] for start, stop in pairwise(edges))

    def _needs_marks(self, value: Any, searched: _Searched) -> bool:
        if isinstance(value, str):
            return searched.pattern.search(self._seen(value)) is not None or any(searched.open_ends(value))
        if isinstance(value, Mapping):
            return self._needs_marks([*value, *value.values()], searched)
        return isinstance(value, list) and any(self._needs_marks(entry, searched) for entry in value)

    def _marked(self, value: Any, searched: _Searched) -> Any:
        if isinstance(value, str):
            return self._marked_text(value.replace(MARK, ""), searched)
        if isinstance(value, Mapping):
            return {self._marked(key, searched): self._marked(entry, searched) for key, entry in value.items()}
        return [self._marked(entry, searched) for entry in value] if isinstance(value, list) else value

    def _marked_text(self, text: str, searched: _Searched) -> str:
        seen = self._seen(text)
        if seen is not text and searched.pattern.search(seen) is not None:
            text = seen
        opens, closes = searched.open_ends(text)
        marked = searched.first_characters.sub(rf"\1{MARK}", text)
        return MarkedText((MARK if opens else "") + marked + (MARK if closes else ""))

    def _seen(self, text: str) -> str:
        """The text as the tokenizer searches it."""
        return text if self._normalize is None else self._normalize(text)

    def _occurrences(self, text: str) -> "list[tuple[int, int]]":
        """(start, stop) of guarded tokens' texts, those that overlap too; from each start the longest."""
        found = []
        match = self._all.pattern.search(text)
        while match is not None:
            found.append(match.span())
            match = self._all.pattern.search(text, match.start() + 1)
        return found


def _expression(texts: Collection[str]) -> str:
    """A regular expression for the longest of the texts at a place, in time that does not grow with their number.

    Texts with the same beginning share it; a plain alternative would try each text at each `<`.
    """
    if not texts:
        return "(?!)"
    by_first: dict[str, list[str]] = {}
    for text in texts:
        if text:
            by_first.setdefault(text[0], []).append(text[1:])
    branches = "|".join(re.escape(first) + _expression(rests) for first, rests in by_first.items())
    if not branches:
        return ""
    return f"(?:{branches})?" if "" in texts else f"(?:{branches})"
