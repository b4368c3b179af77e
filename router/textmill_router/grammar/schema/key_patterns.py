"""Patterns of keys as the grammar's library takes them: of those that hold together, no two match the same key."""

from collections.abc import Iterable, Mapping
from typing import Any

from textmill_router.grammar.schema.conjunctions import joint_parts, walk
from textmill_router.grammar.schema.patterns import is_readable, overlap

_ANY_KEY = "^"


def readable_entries(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The schemas by pattern; any key with any value where an expression is one that the library cannot read."""
    return dict(entries) if all(map(is_readable, entries)) else {_ANY_KEY: True}


def part_key_patterns(root: Any, definitions: Mapping[str, Any]) -> bool:
    """Change the schemas in which patterns of keys overlap: they let more through. Whether there are such schemas."""
    if not any("patternProperties" in node for node in walk(root, definitions)):
        return False
    has_changed = False
    for ways in joint_parts(root, definitions):
        owners = [[part for part in way if "patternProperties" in part] for way in ways]
        if any(_overlap(way) for way in owners):
            _part({id(part): part for way in owners for part in way}.values())
            has_changed = True
    return has_changed


def _overlap(parts: Iterable[dict[str, Any]]) -> bool:
    expressions = tuple(dict.fromkeys(name for part in parts for name in part["patternProperties"]))
    return len(expressions) > 1 and overlap(expressions)


def _part(parts: Iterable[dict[str, Any]]) -> None:
    """Let each part have one pattern, the same one for all: a key that matches any of their patterns."""
    owners = list(parts)
    expressions = dict.fromkeys(name for part in owners for name in part["patternProperties"])
    either = "|".join(f"(?:{expression})" for expression in expressions)
    for part in owners:
        schemas = list(part["patternProperties"].values())
        # A key may match the pattern of another part alone. Then this part's patterns say nothing of the key.
        is_any = len(owners) > 1 or True in schemas
        part["patternProperties"] = {either: True if is_any else {"anyOf": schemas}}
