"""Keeps text of users and tools from becoming special tokens, whatever a chat template does with it.

Before rendering, a mark is put into each special token's text that a message holds. Another mark is put at each end of
a text that the template could complete to a special token's text. After rendering, the prompt is cut at the marks that
stand inside a special token's text, and each piece is encoded alone. A conversation without such texts is not changed.

Some tokenizers look for tokens in the normalised text, where other characters can be a special token's text. A text of
such a tokenizer that could take part in a token has marks at all places, and the tokenizer says where tokens stand in
the prompt.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

from textmill_router.chat.marked_text import MARK, MarkedText
from textmill_router.errors import ValidationFailed
from textmill_router.text.normalized_tokens import NormalizedTokens


class _Searched:
    """A set of texts of tokens, prepared for a search."""

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
    """Guards the texts that the tokenizer of one vocabulary reads as special tokens, and the texts of markup.

    Nobody's text may become a special token. Markup (`<think>` and `<tool_call>`, where these are no special tokens)
    may stand in texts of the model and of its operator, who write markup so that the model reads it as markup.
    """

    def __init__(
        self,
        special_texts: Collection[str],
        markup_texts: Collection[str] = (),
        *,
        normalized_special: NormalizedTokens | None = None,
        normalized_markup: NormalizedTokens | None = None,
    ) -> None:
        """The last two are those of the texts that the tokenizer looks for in the normalised text, if any."""
        self._special = _Searched(special_texts)
        self._markup = _Searched(markup_texts)
        self._all = _Searched([*special_texts, *markup_texts]) if markup_texts else self._special
        self._normalized_special = normalized_special
        self._normalized_markup = normalized_markup
        both = (normalized_special, normalized_markup)
        self._normalized = [tokens for tokens in both if tokens is not None]

    def forges(self, role: str) -> bool:
        """Whether a role's name holds a special token's text or is a part of one.

        Templates write `<|` + role + `|>`, so such a name could become a token.
        """
        if any(role in text or text in role for text in self._all.texts):
            return True
        return any(
            (seen := tokens.normalize(role)) in text or text in seen
            for tokens in self._normalized
            for text in tokens.texts
        )

    def guard(self, value: Any, *, keeps_markup: bool = False) -> Any:
        """Return a JSON value with marks in its strings, or the value itself where no string needs a mark."""
        return self._marked(value, keeps_markup) if self._needs_marks(value, keeps_markup) else value

    def cut(self, rendered: str) -> tuple[str, ...]:
        """Return the pieces of a rendered prompt that are encoded alone; there is one where no text forges a token.

        Joined, the pieces are the prompt without marks. Raises ValidationFailed for a text that holds one character
        which the tokenizer reads as a special token.
        """
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
        for tokens in self._normalized:
            for start, stop in tokens.spans(text):
                first = bisect_left(joints, start)
                if stop - start == 1 and first < len(joints) and joints[first] == start:
                    raise ValidationFailed(
                        f"a message must not hold {text[start]!r}, which this model's tokenizer reads as a special "
                        "token; leave the character out",
                        field="messages",
                    )
                # All joints inside, because a part with the blanks before it may be the whole token again.
                cuts += joints[bisect_right(joints, start) : bisect_left(joints, stop)]
        edges = [0, *sorted(set(cuts)), len(text)]
        return tuple(text[start:stop] for start, stop in pairwise(edges))

    def _needs_marks(self, value: Any, keeps_markup: bool) -> bool:
        if isinstance(value, str):
            searched = self._special if keeps_markup else self._all
            is_plain = searched.pattern.search(value) is None and not any(searched.open_ends(value))
            return not is_plain or self._needs_marks_everywhere(value, keeps_markup)
        if isinstance(value, Mapping):
            return self._needs_marks([*value, *value.values()], keeps_markup)
        return isinstance(value, list) and any(self._needs_marks(entry, keeps_markup) for entry in value)

    def _needs_marks_everywhere(self, text: str, keeps_markup: bool) -> bool:
        guarded = (self._normalized_special, None if keeps_markup else self._normalized_markup)
        return any(tokens is not None and tokens.may_hold_part(text) for tokens in guarded)

    def _marked(self, value: Any, keeps_markup: bool) -> Any:
        if isinstance(value, str):
            return self._marked_text(value.replace(MARK, ""), keeps_markup)
        if isinstance(value, Mapping):
            return {self._marked(key, keeps_markup): self._marked(entry, keeps_markup) for key, entry in value.items()}
        return [self._marked(entry, keeps_markup) for entry in value] if isinstance(value, list) else value

    def _marked_text(self, text: str, keeps_markup: bool) -> str:
        if self._needs_marks_everywhere(text, keeps_markup):
            return MarkedText.all_marked(text) if not keeps_markup else self._marked_around_markup(text)
        searched = self._special if keeps_markup else self._all
        opens, closes = searched.open_ends(text)
        marked = searched.first_characters.sub(rf"\1{MARK}", text)
        return MarkedText((MARK if opens else "") + marked + (MARK if closes else ""))

    def _marked_around_markup(self, text: str) -> str:
        """Return the text with marks at all places but those inside markup, which must stay whole."""
        spans = [match.span() for match in self._markup.pattern.finditer(text)]
        spans += [] if self._normalized_markup is None else self._normalized_markup.spans(text)
        whole = {place for start, stop in spans for place in range(start + 1, stop)}
        marks = ("" if place in whole else MARK for place in range(len(text)))
        return MarkedText("".join(mark + character for mark, character in zip(marks, text, strict=True)) + MARK)

    def _occurrences(self, text: str) -> "list[tuple[int, int]]":
        """Return (start, stop) of all guarded texts, also where they overlap; of several at one start the longest."""
        found = []
        match = self._all.pattern.search(text)
        while match is not None:
            found.append(match.span())
            match = self._all.pattern.search(text, match.start() + 1)
        return found


def _expression(texts: Collection[str]) -> str:
    """Return a regular expression for the longest of the texts at a place.

    The time of a search does not grow with the number of texts, because texts that begin alike share their beginning in
    the expression. A plain alternative would try each text at each `<`.
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
