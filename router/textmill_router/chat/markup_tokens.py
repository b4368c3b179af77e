"""Finds the tokens that are markup of conversations although the vocabulary does not mark them as special."""

import re
from collections.abc import Collection

from textmill_router.parsers.formats import ALL_MARKERS

# Tokens of this form frame messages in every family that has such tokens, even where the template at hand writes none.
_FRAME_FORM = re.compile(r"<[|\uff5c].*[|\uff5c]>", re.DOTALL)
_TAG_FORM = re.compile(r"<\S+>|\[\S+\]")


def markup_texts(added_texts: Collection[str], template_sources: Collection[str]) -> frozenset[str]:
    """Return the texts of added tokens that only the template and the model may write as tokens.

    These are texts of the form `<|...|>`, and tags that a template of the model writes or that the formats of calls and
    reasoning know. Other added tokens (`<b>`, runs of spaces, words) are ordinary text for which there is one id.
    """
    return frozenset(
        text
        for text in added_texts
        if _FRAME_FORM.fullmatch(text)
        or (_TAG_FORM.fullmatch(text) and (text in ALL_MARKERS or any(text in source for source in template_sources)))
    )
