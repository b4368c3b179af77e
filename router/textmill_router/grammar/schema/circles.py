"""References in a circle that hold together with other schemas, which the grammar's library cannot intersect.

A schema for both of two such references gets a definition of its own. Its properties refer to the definitions for both
of their properties, and so on until a definition is there already: each pair of schemas is written once.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from textmill_router.exact_json import dump_json
from textmill_router.grammar.schema.conjunctions import (
    children,
    definition_of,
    groups_inside,
    identity,
    is_joined,
    matches,
    variants,
)
from textmill_router.grammar.schema.merge import NotMergeable, alternatives

MAX_PRODUCTS = 200  # definitions for several schemas together
MAX_STEPS = 2_000  # schemas looked at to find circles
_MAPS = ("properties", "patternProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("additionalProperties", "items")


def without_circles(root: Any, definitions: dict[str, Any]) -> tuple[Any, set[str]]:
    """The root without such circles; new definitions are added. The keywords of which not all is kept."""
    writer = _Writer(definitions)
    for name in list(definitions):
        definitions[name] = writer.rewritten(definitions[name], name)
    root = writer.rewritten(root, None)
    return root, writer.lost


class _Writer:
    """Rewrites the schemas of one normal form."""

    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions
        self._reached: dict[str, frozenset[str]] = {}
        self._names: dict[frozenset[str], str] = {}
        self._num_steps = 0
        self.lost: set[str] = set()

    def rewritten(self, node: Any, home: str | None) -> Any:
        """The schema, which is part of the definition `home`, with definitions in the place of circles."""
        if not isinstance(node, dict):
            return node
        if is_joined(node) and self._is_tangled([node], frozenset(), home):
            return self._together(_flat([node]))
        if "properties" in node and "patternProperties" in node:
            node = self._apart(node, home)
        return self._with_children(node, lambda child: self.rewritten(child, home))

    def _apart(self, node: dict[str, Any], home: str | None) -> dict[str, Any]:
        """The schema without circles between its properties and the patterns that match their keys."""
        properties = _said_once(node["properties"], node["patternProperties"])
        patterns = dict(node["patternProperties"])
        for expression, schema in patterns.items():
            beside = [entry for name, entry in properties.items() if entry is not True and matches(expression, name)]
            if schema is not True and any(self._is_tangled([entry, schema], frozenset(), home) for entry in beside):
                patterns[expression] = True
                self.lost.add("patternProperties")
        return {**node, "properties": properties, "patternProperties": patterns}

    # ---- finding

    def _is_tangled(self, leaves: list[Any], around: frozenset[frozenset[str | int]], home: str | None) -> bool:
        """Whether the library would intersect for ever, or needs a definition in which the library still is."""
        key = frozenset(map(identity, leaves))
        if key in around:
            return True
        if len(leaves) > 1 and len(key) == 1:  # twice the same schema
            name = definition_of(leaves[0])
            return name is not None and self._reaches(name, name)
        self._num_steps += 1
        if self._num_steps > MAX_STEPS:
            return False
        around |= {key}
        for way in variants({"allOf": leaves}, self._definitions):
            names = [name for part in way if (name := definition_of(part)) is not None]
            if home is not None and any(name == home or self._reaches(name, home) for name in names):
                return True
            if any(names.count(name) > 1 and self._reaches(name, name) for name in names):
                return True
            if any(self._is_tangled(group, around, home) for group in groups_inside(way)):
                return True
        return False

    def _reaches(self, name: str, home: str) -> bool:
        if name not in self._reached:
            found: set[str] = set()
            waiting: list[Any] = [self._definitions[name]]
            while waiting:
                node = waiting.pop()
                if not isinstance(node, dict):
                    continue
                target = definition_of(node)
                if target is not None and target not in found:
                    found.add(target)
                    waiting.append(self._definitions[target])
                waiting += children(node)
            self._reached[name] = frozenset(found)
        return home in self._reached[name]

    # ---- writing

    def _together(self, leaves: list[Any]) -> Any:
        """A reference to the definition for all of the schemas."""
        if len(leaves) == 1 and not is_joined(leaves[0]):
            return leaves[0]
        key = frozenset(dump_json(leaf) for leaf in leaves)
        if key not in self._names:
            if len(self._names) >= MAX_PRODUCTS:
                return self._largest(leaves)
            name = self._names[key] = f"and{len(self._names)}"
            self._definitions[name] = {}
            try:
                ways = alternatives({"allOf": leaves}, self._definitions)
            except NotMergeable:
                self._definitions[name] = self._largest(leaves)
            else:
                written = [self._with_children(way, self._child) for way in ways]
                self._definitions[name] = written[0] if len(written) == 1 else {"anyOf": written} if written else False
        return {"$ref": f"#/$defs/{self._names[key]}"}

    def _child(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if set(node) == {"allOf"}:
            return self._together(_flat([node]))
        return self._with_children(node, self._child)

    def _largest(self, leaves: list[Any]) -> Any:
        """One of the schemas in the place of all: the check of the answer holds the others."""
        self.lost.add("allOf")
        parts = variants({"allOf": leaves}, self._definitions)[0]
        nesting = ("$ref", "allOf", "anyOf", "oneOf")
        candidates = [{key: value for key, value in part.items() if key not in nesting} for part in parts]
        types = [{"type": part["type"]} for part in parts if "type" in part]
        return {**(types[0] if types else {}), **max(candidates, key=lambda part: len(dump_json(part)))}

    @staticmethod
    def _with_children(node: Mapping[str, Any], write: Any) -> dict[str, Any]:
        result = dict(node)
        for key in _MAPS:
            if key in node:
                result[key] = {name: write(child) for name, child in node[key].items()}
        for key in _LISTS:
            if key in node:
                result[key] = [write(child) for child in node[key]]
        for key in _SINGLE:
            if key in node:
                result[key] = write(node[key])
        return result


def _said_once(properties: Mapping[str, Any], patterns: Mapping[str, Any]) -> dict[str, Any]:
    """The properties without what the pattern of their key says of them too: the library intersects both."""
    result = dict(properties)
    for expression, schema in patterns.items():
        for name, entry in properties.items():
            if entry == schema and isinstance(schema, dict) and matches(expression, name):
                result[name] = True
    return result


def _flat(nodes: Iterable[Any]) -> list[Any]:
    """The schemas without `allOf` around them, each once."""
    found: dict[str, Any] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, dict) and set(node) == {"allOf"}:
            waiting = [*node["allOf"], *waiting]
        elif node not in (True, {}):
            found.setdefault(dump_json(node), node)
    return list(found.values()) or [{}]
