"""Whether two schemas in normal form can match the same value."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from textmill_router.exact_json import decimal_of, dump_json, is_number

MAX_DEPTH = 8
MAX_ENTRIES = 64
_ALL_TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})


def are_disjoint(entries: Sequence[Any], others: Sequence[Any], definitions: Mapping[str, Any]) -> bool:
    """Whether no value of one of `entries` matches one of `others` in another place.

    `others` are the same schemas, perhaps with objects that are open. Types, constants, bounds and required keys count.
    """
    if len(entries) > MAX_ENTRIES or len(entries) != len(others):
        return False
    return all(
        _exclude(entry, other, definitions, 0)
        for index, entry in enumerate(entries)
        for place, other in enumerate(others)
        if index < place or (index > place and entries is not others)
    )


def _exclude(first: Any, second: Any, definitions: Mapping[str, Any], depth: int) -> bool:
    if first is False or second is False:
        return True
    if not isinstance(first, dict) or not isinstance(second, dict) or depth > MAX_DEPTH:
        return False
    for part in _parts(first, definitions, 0):
        for other in _parts(second, definitions, 0):
            if _parts_exclude(part, other, definitions, depth):
                return True
    for one, two in ((first, second), (second, first)):
        for part in _parts(one, definitions, 0):
            for choice in ("anyOf", "oneOf"):
                if choice in part and all(_exclude(entry, two, definitions, depth + 1) for entry in part[choice]):
                    return True
    return False


def _parts(node: Any, definitions: Mapping[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    if not isinstance(node, dict) or depth > MAX_DEPTH:
        return
    yield node
    if "$ref" in node:
        yield from _parts(definitions[node["$ref"].removeprefix("#/$defs/")], definitions, depth + 1)
    for entry in node.get("allOf", ()):
        yield from _parts(entry, definitions, depth + 1)


def _parts_exclude(first: dict[str, Any], second: dict[str, Any], definitions: Mapping[str, Any], depth: int) -> bool:
    types = _types(first) & _types(second)
    if not types:
        return True
    values, others = _values(first), _values(second)
    if values is not None and others is not None and not values & others:
        return True
    if types == {"number"} and (_lies_above(first, second) or _lies_above(second, first)):
        return True
    if types != {"object"}:
        return False
    for name in {*_names(first, "required"), *_names(second, "required")}:
        if _exclude(_property(first, name), _property(second, name), definitions, depth + 1):
            return True
    return False


def _types(node: dict[str, Any]) -> frozenset[str]:
    named = node.get("type")
    if named is None:
        values = node.get("enum", [node["const"]] if "const" in node else None)
        return _ALL_TYPES if not isinstance(values, list) else frozenset(map(_type_of, values))
    listed = named if isinstance(named, list) else [named]
    return frozenset("number" if name == "integer" else name for name in listed if isinstance(name, str))


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if is_number(value):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _values(node: dict[str, Any]) -> frozenset[str] | None:
    values = [node["const"]] if "const" in node else node.get("enum")
    if not isinstance(values, list):
        return None
    return frozenset(str(decimal_of(value).normalize()) if is_number(value) else dump_json(value) for value in values)


def _lies_above(first: dict[str, Any], second: dict[str, Any]) -> bool:
    for low, is_open in (("minimum", False), ("exclusiveMinimum", True)):
        for high, is_open_too in (("maximum", False), ("exclusiveMaximum", True)):
            if is_number(first.get(low)) and is_number(second.get(high)):
                least, most = decimal_of(first[low]), decimal_of(second[high])
                if least > most or (least == most and (is_open or is_open_too)):
                    return True
    return False


def _names(node: dict[str, Any], key: str) -> list[str]:
    names = node.get(key, ())
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _property(node: dict[str, Any], name: str) -> Any:
    if name in node.get("properties", {}):
        return node["properties"][name]
    return True if node.get("patternProperties") else node.get("additionalProperties", True)
