"""Where the references of a schema lead: inside the schema alone, nothing is ever fetched."""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from jsonschema_specifications import REGISTRY

# Of these nothing is a schema, whatever it looks like.
VALUES = frozenset({"const", "enum", "default", "example", "examples"})
# The keys of these are names, not keywords.
MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})


class References:
    """All schemas of one document by their addresses; a `base` is the address of the resource around a schema."""

    def __init__(self, root: Any) -> None:
        self._resources: dict[str, Any] = {"": root}
        self._anchors: dict[tuple[str, str], Any] = {}
        self._addresses: dict[int, str] = {}  # of the resource around each schema, by the identity of the schema
        self._add(root, "")

    def _add(self, root: Any, address: str) -> None:
        for node, base in _schemas(root, address):
            own = self._addresses[id(node)] = _own_address(node, base)
            self._resources.setdefault(own, node)
            for key in ("$anchor", "$dynamicAnchor", "$id", "id"):
                name = node.get(key)
                if isinstance(name, str) and name and (key.endswith("nchor") or name.startswith("#")):
                    self._anchors.setdefault((own, name.removeprefix("#")), node)

    def base_of(self, node: Mapping[str, Any], base: str) -> str:
        """The address of the resource that the schema is part of; `base` where no document holds the schema."""
        return self._addresses.get(id(node), base)

    def resolve(self, reference: object, base: str) -> tuple[Any, str] | None:
        """The schema that a reference leads to, and the base of that schema; None where it leads nowhere."""
        if not isinstance(reference, str):
            return None
        try:
            address, fragment = urldefrag(urljoin(base, reference))
        except ValueError:
            return None
        if reference.startswith("#"):
            address = base  # `urljoin` knows no bases such as `urn:`
        if address not in self._resources and not self._add_published(address):
            return None
        if (address, fragment) in self._anchors:
            return self._anchors[address, fragment], address
        found = _walk(self._resources[address], address, unquote(fragment))
        if found is None and reference.startswith("#"):
            # Many schemas put an `id` into each part and yet count their pointers from the root.
            found = _walk(self._resources[""], "", unquote(fragment))
        return found

    def _add_published(self, address: str) -> bool:
        """The published meta-schemas are at hand."""
        found = REGISTRY.get(address) or REGISTRY.get(f"{address}#")
        if found is None:
            return False
        self._resources[address] = found.contents
        self._add(found.contents, address)
        return True


def _own_address(node: Mapping[str, Any], base: str) -> str:
    for key in ("$id", "id"):
        own = node.get(key)
        if isinstance(own, str) and own and not own.startswith("#"):
            try:
                return urldefrag(urljoin(base, own))[0]
            except ValueError:
                return base
    return base


def _walk(node: Any, base: str, pointer: str) -> tuple[Any, str] | None:
    if pointer and not pointer.startswith("/"):
        return None
    for step in pointer.split("/")[1:]:
        if isinstance(node, dict):
            key = step.replace("~1", "/").replace("~0", "~")
            if key not in node:
                return None
            node = node[key]
            base = _own_address(node, base) if isinstance(node, dict) else base
        elif isinstance(node, list) and step.isdigit() and int(step) < len(node):
            node = node[int(step)]
            base = _own_address(node, base) if isinstance(node, dict) else base
        else:
            return None
    return (node, base) if isinstance(node, dict | bool) else None


def _schemas(root: Any, base: str) -> Iterator[tuple[dict[str, Any], str]]:
    """All objects below a schema that may be schemas, each with the base of the schema around it."""
    waiting: list[tuple[Any, str]] = [(root, base)]
    while waiting:
        node, around = waiting.pop()
        if isinstance(node, list):
            waiting += [(entry, around) for entry in node]
        elif isinstance(node, dict):
            yield node, around
            own = _own_address(node, around)
            for key, entry in node.items():
                if key in MAPS and isinstance(entry, dict):
                    waiting += [(inner, own) for inner in entry.values()]
                elif key not in VALUES:
                    waiting.append((entry, own))
