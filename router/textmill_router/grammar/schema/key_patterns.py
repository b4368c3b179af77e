"""Patterns of keys as the grammar's library takes them: of those that hold together, no two match the same key."""

from collections.abc import Iterable, Mapping
from typing import Any

from textmill_router.grammar.schema.conjunctions import joint_parts, walk
from textmill_router.grammar.schema.patterns import overlap

# Groups of patterns that are compared, each of which takes the event loop a millisecond; the others count as
# overlapping.
MAX_COMPARISONS = 200
ANY_KEY = "^"


def part_key_patterns(root: Any, definitions: Mapping[str, Any]) -> bool:
    """Change the schemas in which patterns of keys overlap: they let more through. Whether there are such schemas."""
    if not any("patternProperties" in node for node in walk(root, definitions)):
        return False
    has_changed = False
    num_compared = 0
    for ways in joint_parts(root, definitions):
        owners = [[part for part in way if "patternProperties" in part] for way in ways]
        several = [way for way in owners if len(_expressions(way)) > 1]
        num_compared += len(several)
        if several and (num_compared > MAX_COMPARISONS or any(overlap(_expressions(way)) for way in several)):
            _part({id(part): part for way in owners for part in way}.values())
            has_changed = True
    return has_changed


def _expressions(parts: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part["patternProperties"]))


def _part(parts: Iterable[dict[str, Any]]) -> None:
    """Let each part have one pattern, the same one for all: a key that matches any of their patterns."""
    owners = list(parts)
    either = "|".join(f"(?:{expression})" for expression in _expressions(owners))
    for part in owners:
        schemas = list(part["patternProperties"].values())
        # A key may match the pattern of another part alone. Then this part's patterns say nothing of the key.
        is_any = len(owners) > 1 or True in schemas
        part["patternProperties"] = {either: True if is_any else {"anyOf": schemas}}
