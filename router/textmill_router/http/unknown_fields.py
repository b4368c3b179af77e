"""Fields of bodies that a route does not know change nothing, and the log names each of them once."""

import logging
import re
from collections.abc import Collection

import msgspec

log = logging.getLogger(__name__)

# Longer bodies are not looked at, because they are long for their texts and not for their fields.
MAX_BODY_BYTES = 65_536
MAX_NAMES = 256  # the most names that are remembered
# The name of a field. A key that is no name may be a text of a user, which no log shows.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class UnknownFields:
    """Logs the fields of a route's bodies that are not among `known`."""

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
