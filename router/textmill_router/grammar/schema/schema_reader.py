"""What a schema says in all its parts: where references lead, which schemas hold together, which keys objects have."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from textmill_router.exact_json import is_number
from textmill_router.grammar.schema.negation import keywords_of, without_conditions
from textmill_router.grammar.schema.references import References

MAX_PARTS = 100_000  # looked at to find what keys an object has; each of a chain of parts looks at all that follow
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_SIBLINGS_IGNORED = ("draft-03", "draft-04", "draft-06", "draft-07")


class BadSchema(Exception):
    """No answer could ever be held to the schema; the text says why."""


@dataclass(slots=True)
class Keys:
    """The keys of an object by all parts of a schema that hold for that object."""

    names: dict[str, None] = field(default_factory=dict)
    patterns: dict[str, None] = field(default_factory=dict)
    is_spoken_of: bool = False  # something is said of keys that no part names
    has_type: bool = False
    has_list: bool = False  # `properties` are listed, though there may be none
    needs: int = 0  # most properties that a part demands

    @property
    def has_any(self) -> bool:
        return bool(self.names or self.patterns or self.has_list)


NO_KEYS = Keys()
OPEN = Keys(is_spoken_of=True)


class SchemaReader:
    """Reads the schemas inside one root. The base of a schema is the address against which its references resolve.

    `weakened` collects keywords that no normal form says, so that the check of the answer must hold them.
    """

    def __init__(self, root: Any) -> None:
        self._references = References(root)
        dialect = root.get("$schema") if isinstance(root, dict) else None
        self._ignores_siblings = isinstance(dialect, str) and any(name in dialect for name in _SIBLINGS_IGNORED)
        self.weakened: set[str] = set()
        self._plain: dict[int, tuple[Any, dict[str, Any]]] = {}  # schemas without conditions, by id; the first keeps it
        self._num_parts = 0

    def base_of(self, node: dict[str, Any], base: str) -> str:
        """The base of a schema that stands in a schema with this base."""
        return self._references.base_of(node, base)

    # ---- what a schema says of keys

    def keys(self, node: Any, base: str, seen: set[int]) -> Keys:
        """The keys that the schema, the schemas to which it refers, and the parts of its `allOf` name.

        Schemas in `seen` are passed over, and those that were looked at enter `seen`. `unevaluatedProperties: false`
        beside all parts says what closing says; inside a part the keyword says something else.
        """
        found = Keys()
        for part, _ in self._parts(node, base, seen):
            for key in ("properties", "patternProperties"):
                if isinstance(part.get(key), dict):
                    (found.names if key == "properties" else found.patterns).update(dict.fromkeys(part[key]))
            if isinstance(part.get("required"), list):
                found.names.update(dict.fromkeys(name for name in part["required"] if isinstance(name, str)))
            found.has_list |= isinstance(part.get("properties"), dict)
            is_other = part.get("unevaluatedProperties", False) is not False or part is not node
            found.is_spoken_of |= "additionalProperties" in part or ("unevaluatedProperties" in part and is_other)
            found.has_type |= any(key in part for key in ("type", "const", "enum", "items", "prefixItems"))
            if is_number(part.get("minProperties")):
                found.needs = max(found.needs, int(part["minProperties"]))
        return found

    def _parts(self, node: Any, base: str, seen: set[int]) -> Iterator[tuple[dict[str, Any], str]]:
        """The schema and all that must hold beside it."""
        if not isinstance(node, dict) or id(node) in seen:
            return
        seen.add(id(node))
        base = self.base_of(node, base)
        node = self.without_conditions(node)
        yield node, base
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise BadSchema(f"its schemas have more than {MAX_PARTS} parts that hold together; make it simpler")
        for reference in _REFERENCES:
            if reference in node:
                yield from self._parts(*self.target(node[reference], base), seen)
        for entry in node.get("allOf", ()) if isinstance(node.get("allOf"), list) else ():
            yield from self._parts(entry, base, seen)

    def has_hidden_choices(self, node: Any, base: str) -> bool:
        """Whether a part of the schema, other than the schema itself, has alternatives."""
        return any(
            part is not node and ("anyOf" in part or "oneOf" in part) for part, _ in self._parts(node, base, set())
        )

    def add_keys_of_choices(self, node: Any, base: str, keys: Keys) -> bool:
        """Add the keys that any alternative names. Returns False where one says something of further keys."""
        waiting = [(node, base)]
        seen: set[int] = set()
        while waiting:
            for part, inner in self._parts(*waiting.pop(), seen):
                found = self.keys(part, inner, set())
                if found.is_spoken_of:
                    return False
                keys.names.update(found.names)
                keys.patterns.update(found.patterns)
                for choice in ("anyOf", "oneOf"):
                    if isinstance(part.get(choice), list):
                        waiting += [(entry, inner) for entry in part[choice]]
        return True

    # ---- one schema

    def without_conditions(self, node: dict[str, Any]) -> dict[str, Any]:
        """The schema without `not`, `if` and the like, which no normal form says.."""
        if self._ignores_siblings and "$ref" in node:
            node = self._kept(node, lambda: ({"$ref": node["$ref"]}, set()))
        return self._kept(node, lambda: without_conditions(node))

    def _kept(self, node: dict[str, Any], write: Callable[[], tuple[dict[str, Any], set[str]]]) -> dict[str, Any]:
        kept = self._plain.get(id(node))
        if kept is None:
            written, weakened = write()
            if written == node:
                written = node
            self.weakened |= weakened
            kept = self._plain[id(node)] = (node, written)
            self._plain.setdefault(id(written), (written, written))
        return kept[1]

    def only_reference(self, node: dict[str, Any]) -> str | None:
        """The reference of a schema that says no more, or None."""
        if self._ignores_siblings and "$ref" in node:
            return str(node["$ref"])
        said = keywords_of(node)
        if len(said) != 1 or not said <= set(_REFERENCES):
            return None
        self.weakened |= said - {"$ref"}  # where such a reference leads depends on the way to it
        return str(node[next(iter(said))])

    def target(self, reference: object, base: str) -> tuple[Any, str]:
        """The schema to which a reference leads, and that schema's base. Raises BadSchema where it leads nowhere."""
        found = self._references.resolve(reference, base)
        if found is None:
            raise BadSchema(
                f"the reference {reference!r} leads nowhere; only references inside the schema are followed"
            )
        return found


def names_all_keys(node: Mapping[str, Any]) -> bool:
    """Whether a schema names the keys of its object itself, without parts, alternatives and references."""
    return not keywords_of(node) & {"allOf", "anyOf", "oneOf", *_REFERENCES}
