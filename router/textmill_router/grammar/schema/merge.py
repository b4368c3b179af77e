"""A schema in normal form as alternatives without `allOf`, `anyOf` and references, where such can be written."""

from collections.abc import Callable, Mapping
from typing import Any

from textmill_router.exact_json import decimal_of, dump_json, is_number

MAX_ALTERNATIVES = 32
MAX_DEPTH = 24
TYPES = ("null", "boolean", "number", "string", "array", "object")
_LARGEST = frozenset({"minimum", "exclusiveMinimum", "minItems", "minLength", "minProperties"})
_SMALLEST = frozenset({"maximum", "exclusiveMaximum", "maxItems", "maxLength", "maxProperties"})
_NESTING = ("$ref", "allOf", "anyOf", "oneOf")


class NotMergeable(Exception):
    """Two schemas that hold for the same value have no plain schema for both."""


def alternatives(node: Any, definitions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Plain schemas of which one must match. Raises NotMergeable."""
    return _alternatives(node, definitions, 0)


def _alternatives(node: Any, definitions: Mapping[str, Any], depth: int) -> list[dict[str, Any]]:
    if node is False:
        return []
    if node is True:
        return [{}]
    if depth > MAX_DEPTH:
        raise NotMergeable
    found = [{key: value for key, value in node.items() if key not in _NESTING}]
    groups = [[entry] for entry in node.get("allOf", ())]
    groups += [node[key] for key in ("anyOf", "oneOf") if key in node]
    if "$ref" in node:
        groups.append([definitions[node["$ref"].removeprefix("#/$defs/")]])
    for group in groups:
        others = [other for entry in group for other in _alternatives(entry, definitions, depth + 1)]
        merged = [_merged(first, second) for first in found for second in others]
        found = [schema for schema in merged if schema is not None]
        if len(found) > MAX_ALTERNATIVES:
            raise NotMergeable
    return found


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of what matches both; None where nothing does."""
    if not first or not second:
        return first or second
    result = {**first, **second}
    if _KEYS_OF_OBJECTS & first.keys() and _KEYS_OF_OBJECTS & second.keys():
        _merge_objects(first, second, result)
    for key in first.keys() & second.keys() - _KEYS_OF_OBJECTS:
        if dump_json(first[key]) == dump_json(second[key]):
            continue
        merged = _merge_keyword(key, first[key], second[key])
        if merged is None:
            return None
        result[key] = merged
    if ("prefixItems" in result and "items" in result) and ("prefixItems" in first) != ("prefixItems" in second):
        raise NotMergeable  # what one calls a further item stands among the first items of the other
    return result


_KEYS_OF_OBJECTS = frozenset({"properties", "required", "additionalProperties", "patternProperties"})


def _merge_keyword(key: str, first: Any, second: Any) -> Any:
    """The value for both; None where nothing matches both."""
    match key:
        case "type":
            both = [name for name in types_of({"type": first}) if name in types_of({"type": second})]
            if "integer" in (first, second) and "number" in both:
                both[both.index("number")] = "integer"
            return both or None
        case "enum":
            texts = {dump_json(value) for value in second}
            return [value for value in first if dump_json(value) in texts] or None
        case "const":
            return None
        case "items":
            return _both(first, second)
        case _ if key in _LARGEST and is_number(first) and is_number(second):
            return max(first, second, key=decimal_of)
        case _ if key in _SMALLEST and is_number(first) and is_number(second):
            return min(first, second, key=decimal_of)
    raise NotMergeable


def _merge_objects(first: dict[str, Any], second: dict[str, Any], result: dict[str, Any]) -> None:
    if "patternProperties" in result:
        raise NotMergeable
    names = dict.fromkeys([*first.get("properties", {}), *second.get("properties", {})])
    result["properties"] = {name: _both(property_of(first, name), property_of(second, name)) for name in names}
    result["additionalProperties"] = _both(
        first.get("additionalProperties", True), second.get("additionalProperties", True)
    )
    result["required"] = list(dict.fromkeys([*first.get("required", ()), *second.get("required", ())]))


def property_of(schema: Mapping[str, Any], name: str) -> Any:
    """The schema of the values under a key, in a schema without `patternProperties`."""
    named: Any = schema.get("properties", {}).get(name, schema.get("additionalProperties", True))
    return named


def _both(first: Any, second: Any) -> Any:
    if first is False or second is False:
        return False
    if first is True or first == second:
        return second
    return first if second is True else {"allOf": [first, second]}


def types_of(schema: Mapping[str, Any]) -> list[str]:
    """The types that a schema allows, `integer` counted as `number`."""
    named = schema.get("type", list(TYPES))
    listed = named if isinstance(named, list) else [named]
    return list(dict.fromkeys("number" if name == "integer" else name for name in listed))


def any_value(node: Any, test: Callable[[Any], bool]) -> bool:
    """Whether a JSON value or something inside it passes the test."""
    if isinstance(node, dict):
        return any(any_value(value, test) for value in node.values())
    if isinstance(node, list):
        return any(any_value(value, test) for value in node)
    return test(node)
