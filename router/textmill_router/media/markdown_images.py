"""Images in the text of TGI's native routes: each `![](URL)` is one, as in TGI. The alternative text is empty."""

import re
from dataclasses import dataclass

_IMAGE = re.compile(r"!\[\]\(([^)]*)\)")


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A text cut at its images: `texts[0]`, the first image, `texts[1]` and so on, with one text more than images."""

    texts: tuple[str, ...]
    urls: tuple[str, ...]

    @property
    def sources(self) -> list[str]:
        """The parts of the text as the client wrote them: texts and, between them, images."""
        sources = [self.texts[0]]
        for url, text in zip(self.urls, self.texts[1:], strict=True):
            sources += [f"![]({url})", text]
        return sources


def split_images(text: str) -> MarkedText:
    """Cut a text at its images."""
    parts = _IMAGE.split(text)  # the group of the expression stands between the texts
    return MarkedText(tuple(parts[0::2]), tuple(parts[1::2]))
