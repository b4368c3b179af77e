"""The form of errors and the header of the key that clients expect on all paths under a prefix, with a route or not."""

from collections.abc import Iterable
from dataclasses import dataclass

from textmill_router.http.error_responses import TGI_ERRORS, ErrorStyle

AUTHORIZATION = "authorization"
X_API_KEY = "x-api-key"


@dataclass(frozen=True, slots=True)
class PathStyle:
    """How the paths under `prefix` look. `key_header` is the header in which clients of these paths show the API key.

    `authorization` holds `Bearer <key>`, any other header the key as it is. `authorization` and `x-api-key` show the
    key on every path.
    """

    prefix: str
    errors: ErrorStyle
    key_header: str = AUTHORIZATION


# The style of all paths that no dialect claims for itself.
ROOT_STYLE = PathStyle("", TGI_ERRORS)


class PathStyles:
    """Finds the style of a path; the longest prefix counts. A path below `root_path` is read without that part."""

    def __init__(self, styles: Iterable[PathStyle] = (), root_path: str = "") -> None:
        self._root_path = root_path
        by_prefix = {ROOT_STYLE.prefix: ROOT_STYLE}
        for style in styles:
            known = by_prefix.setdefault(style.prefix, style)
            assert known == style, f"two styles for the paths under {style.prefix!r}"
        self._longest_first = sorted(by_prefix.values(), key=lambda style: len(style.prefix), reverse=True)

    def of(self, path: str) -> PathStyle:
        if self._root_path and path.startswith(self._root_path + "/"):
            path = path[len(self._root_path) :]
        return next(style for style in self._longest_first if path.startswith(style.prefix))
