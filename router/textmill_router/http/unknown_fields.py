"""Fields of bodies that a route does not know: names that would bind the answer elsewhere are refused.

The others change nothing, and the log names each of them once.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, get_args

import msgspec

from textmill_router.errors import ValidationFailed

log = logging.getLogger(__name__)

# Longer bodies are not looked at, because they are long for their texts and not for their fields.
MAX_BODY_BYTES = 65_536
MAX_NAMES = 256  # the most names that are remembered
# The name of a field. A key that is no name may be a text of a user, which no log shows.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class _KnownFields:
    """The fields of an object, and of its fields those that are objects with fields of their own."""

    names: frozenset[str]
    objects: Mapping[str, "_KnownFields"]


class UnknownFields:
    """Finds the fields of a route's bodies that `body_type`, and the structs in its fields, do not have.

    `refused` holds the paths of fields that would bind the answer on other routes or servers, such as
    `parameters.guided_regex`, and for each a sentence that says what a client can do instead.
    """

    def __init__(self, body_type: Any, refused: Mapping[str, str] = {}) -> None:
        self._known = _known_fields(body_type)
        self._refused = refused
        names = {path.rpartition(".")[2] for path in refused}
        self._refused_names = re.compile("|".join(f'"{name}"' for name in sorted(names)).encode()) if names else None
        self._logged: set[str] = set()

    def note(self, body: bytes, route: str) -> None:
        """Log the unknown names of a body that was decoded before. Raises ValidationFailed for a refused one."""
        is_short = len(body) <= MAX_BODY_BYTES
        if is_short or (self._refused_names is not None and self._refused_names.search(body)):
            self._note(body, self._known, "", route)

    def _note(self, data: "bytes | msgspec.Raw", known: _KnownFields, path: str, route: str) -> None:
        found = _FIELDS.decode(data)
        if not found.keys() <= known.names:
            for key in found.keys() - known.names:
                name = path + key
                if name in self._refused and bytes(found[key]) != b"null":
                    raise ValidationFailed(
                        f"`{name}` is not supported: {self._refused[name]}; leave it out", field=name
                    )
                if name not in self._logged and len(self._logged) < MAX_NAMES and _NAME.fullmatch(key):
                    self._logged.add(name)
                    log.info("a field is not known and changes nothing", extra={"field": name, "route": route})
        for key, inner in known.objects.items():
            value = found.get(key)
            if value is not None and bytes(value)[:1] == b"{":  # a field may also be null, a text or a list
                self._note(value, inner, f"{path}{key}.", route)


def _known_fields(struct: Any) -> _KnownFields:
    if not _is_struct(struct):
        return _KnownFields(frozenset(), {})
    fields = msgspec.structs.fields(struct)
    objects = {}
    for field in fields:
        options = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
        for struct_type in filter(_is_struct, options):  # msgspec lets a field have one such type
            objects[field.encode_name] = _known_fields(struct_type)
    return _KnownFields(frozenset(field.encode_name for field in fields), objects)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
