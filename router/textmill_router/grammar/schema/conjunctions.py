"""Which schemas in normal form hold for one value together."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from textmill_router.grammar.schema.backtracking import PatternTooDear
from textmill_router.grammar.schema.patterns import pattern

MAX_VARIANTS = 32
MAX_GROUPS = 2_000  # groups of schemas that hold together, looked at in one normal form
_CHOICES = ("anyOf", "oneOf")
_NESTING = frozenset({"$ref", "allOf", *_CHOICES})
_MAPS = ("properties", "patternProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("additionalProperties", "items")


def definition_of(node: Any) -> str | None:
    """The name of the definition that a schema in normal form refers to, alone or beside other keywords."""
    return node["$ref"].removeprefix("#/$defs/") if isinstance(node, dict) and "$ref" in node else None


def children(node: Mapping[str, Any]) -> Iterator[Any]:
    """All schemas directly inside a schema."""
    for key in _MAPS:
        yield from node.get(key, {}).values()
    for key in _LISTS:
        yield from node.get(key, ())
    for key in _SINGLE:
        if key in node:
            yield node[key]


def is_joined(node: Any) -> bool:
    """Whether more than one schema holds for the values of this one."""
    if not isinstance(node, dict) or not _NESTING & node.keys():
        return False
    return len(node) > 1 or len(node.get("allOf", ())) > 1


def variants(
    node: Any, definitions: Mapping[str, Any], seen: frozenset[str] = frozenset()
) -> list[list[dict[str, Any]]]:
    """The schemas that hold together for a value, one list for each way through `anyOf` and `oneOf`.

    Beyond `MAX_VARIANTS` ways there is one list of all schemas of all ways. Schemas count without what they nest.
    """
    fixed: list[dict[str, Any]] = []
    choices: list[list[Any]] = []
    entered = set(seen)
    _collect(node, definitions, fixed, choices, entered)
    ways = [[way for entry in choice for way in variants(entry, definitions, frozenset(entered))] for choice in choices]
    num_ways = 1
    for options in ways:
        num_ways *= max(1, len(options))
    if num_ways > MAX_VARIANTS:
        return [[*fixed, *(part for options in ways for way in options for part in way)]]
    return [[*fixed, *(part for way in combination for part in way)] for combination in product(*ways)]


def _collect(
    node: Any, definitions: Mapping[str, Any], fixed: list[dict[str, Any]], choices: list[list[Any]], seen: set[str]
) -> None:
    """Add a schema and all that must hold beside it; `seen` names the definitions that were entered."""
    if not isinstance(node, dict):
        return
    fixed.append(node)
    name = definition_of(node)
    if name is not None and name not in seen:
        seen.add(name)
        _collect(definitions[name], definitions, fixed, choices, seen)
    for entry in node.get("allOf", ()):
        _collect(entry, definitions, fixed, choices, seen)
    choices += [node[key] for key in _CHOICES if key in node]


def walk(root: Any, definitions: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All schemas of a normal form that are objects, those around before those inside."""
    waiting = [root, *definitions.values()]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += children(node)


def joint_parts(root: Any, definitions: Mapping[str, Any]) -> Iterator[list[list[dict[str, Any]]]]:
    """The variants of each value for which several schemas hold, or one that names keys by patterns.

    Values inside such values count too.
    """
    seen: set[frozenset[str | int]] = set()
    waiting = [[node] for node in walk(root, definitions) if "patternProperties" in node or is_joined(node)]
    while waiting and len(seen) < MAX_GROUPS:
        leaves = waiting.pop()
        key = frozenset(map(identity, leaves))
        if key not in seen:
            seen.add(key)
            ways = variants({"allOf": leaves}, definitions)
            yield ways
            waiting += [group for way in ways for group in groups_inside(way)]


def groups_inside(parts: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    """The schemas that hold together for a value inside a value of all the parts, two or more each time.

    Two references to one definition count as two.
    """
    candidates: list[list[Any]] = []
    for name in dict.fromkeys(name for part in parts for name in part.get("properties", {})):
        candidates.append([schema for part in parts for schema in schemas_of_key(part, name)])
    for expression in dict.fromkeys(name for part in parts for name in part.get("patternProperties", {})):
        others = [part.get("additionalProperties", True) for part in parts]
        own = [part.get("patternProperties", {}).get(expression) for part in parts]
        candidates.append([other if schema is None else schema for schema, other in zip(own, others, strict=True)])
    candidates.append([part.get("additionalProperties", True) for part in parts])
    for place in range(max((len(part.get("prefixItems", ())) for part in parts), default=0)):
        firsts = [part.get("prefixItems", ())[place : place + 1] for part in parts]
        others = [part.get("items", True) for part in parts]
        candidates.append([first[0] if first else other for first, other in zip(firsts, others, strict=True)])
    candidates.append([part.get("items", True) for part in parts])
    for candidate in candidates:
        said = [child for child in candidate if child not in (True, {})]
        distinct = {identity(child): child for child in said}
        if len(distinct) > 1:
            yield list(distinct.values())
        elif len(said) > 1:
            yield said[:2]


def schemas_of_key(part: Mapping[str, Any], name: str) -> list[Any]:
    """The schemas of one part for the value under a key."""
    patterns = part.get("patternProperties", {})
    found = [schema for expression, schema in patterns.items() if matches(expression, name)]
    if name in part.get("properties", {}):
        return [part["properties"][name], *found]
    return found or [part.get("additionalProperties", True)]


def matches(expression: str, name: str) -> bool:
    """Whether a pattern of keys matches a key; also where there is no telling."""
    try:
        return pattern(expression).is_in(name)
    except PatternTooDear:
        return True


def identity(node: Any) -> str | int:
    """The same for two references to one definition; else each schema has its own."""
    name = definition_of(node) if isinstance(node, dict) and len(node) == 1 else None
    return id(node) if name is None else name
