"""Fields of bodies that no route knows: they change nothing, and the log says so once for each name."""

import logging
import re
from collections.abc import Collection

import msgspec

log = logging.getLogger(__name__)

MAX_BODY_BYTES = (
    65_536  # of bodies that are looked at: longer ones hold long texts, and their fields come in short ones too
)
MAX_NAMES = 256  # that are remembered
# A name of a field; what is no name may be a text of a user, which no log shows.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class UnknownFields:
    """Logs the names of a route's bodies that are none of `known`."""

    def __init__(self, known: Collection[str]) -> None:
        self._known = frozenset(known)
        self._logged: set[str] = set()

    def note(self, body: bytes, route: str) -> None:
        """Log the names of a body that was decoded before, each of them once."""
        if len(body) > MAX_BODY_BYTES:
            return
        for name in _FIELDS.decode(body).keys() - self._known - self._logged:
            if len(self._logged) < MAX_NAMES and _NAME.fullmatch(name):
                self._logged.add(name)
                log.info("a field is not known and changes nothing", extra={"field": name, "route": route})
