"""Which tokens of a vocabulary are the markup of conversations although they are not marked as special."""

import re
from collections.abc import Collection

from textmill_router.parsers.formats import ALL_MARKERS

# Fills the prompt's frame in every family that has such tokens, also where the template at hand does not write it.
_FRAME_FORM = re.compile(r"<[|\uff5c].*[|\uff5c]>", re.DOTALL)
_TAG_FORM = re.compile(r"<\S+>|\[\S+\]")


def markup_texts(added_texts: Collection[str], template_sources: Collection[str]) -> frozenset[str]:
    """Of the texts of added tokens those that only the template and the model may write as tokens.

    These are `<|...|>`, and tags that a template of the model writes or the formats of calls and reasoning know.
    Other added tokens (`<b>`, runs of spaces, words) are ordinary text that a vocabulary has one id for.
    """
    return frozenset(
        text
        for text in added_texts
        if _FRAME_FORM.fullmatch(text)
        or (_TAG_FORM.fullmatch(text) and (text in ALL_MARKERS or any(text in source for source in template_sources)))
    )
