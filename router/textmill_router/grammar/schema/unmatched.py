"""Definitions that nothing matches, said as `false` where they are referred to.

The library leaves out an alternative or a property that nothing matches, but not where a reference leads to the schema.
"""

from collections.abc import Mapping
from typing import Any

from textmill_router.exact_json import decimal_of, is_number
from textmill_router.grammar.schema.conjunctions import walk
from textmill_router.grammar.schema.merge import NotMergeable, alternatives, property_of, types_of

MAX_ROUNDS = 5  # of looking again, because what needs an unmatched value is itself unmatched
_BOUNDS = {
    "number": (
        ("minimum", "maximum", False),
        ("exclusiveMinimum", "maximum", True),
        ("minimum", "exclusiveMaximum", True),
    ),
    "string": (("minLength", "maxLength", False),),
    "array": (("minItems", "maxItems", False),),
    "object": (("minProperties", "maxProperties", False),),
}


def without_unmatched(root: Any, definitions: dict[str, Any]) -> Any:
    """The root, and the definitions changed in place, without references to what nothing matches."""
    for _ in range(MAX_ROUNDS):
        unmatched = {name for name in definitions if matches_nothing(definitions[name], definitions)}
        if not unmatched:
            break
        for name in unmatched:
            definitions[name] = False
        references = [{"$ref": f"#/$defs/{name}"} for name in unmatched]
        for node in walk(root, definitions):
            _replace(node, references)
        if root in references:
            return False
        for name in unmatched:
            del definitions[name]
    return root


def matches_nothing(node: Any, definitions: Mapping[str, Any]) -> bool:
    """Whether no value matches, as far as types, constants, bounds and required keys show."""
    try:
        return all(_contradicts(way) for way in alternatives(node, definitions))
    except NotMergeable:
        return False


def _contradicts(schema: Mapping[str, Any]) -> bool:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    types = types_of(schema)
    if isinstance(values, list):
        return not any(_json_type(value) in types for value in values)
    return all(_has_none(schema, kind) for kind in types)


def _has_none(schema: Mapping[str, Any], kind: str) -> bool:
    """Whether no value of the type matches."""
    for least, most, is_open in _BOUNDS.get(kind, ()):
        if is_number(schema.get(least)) and is_number(schema.get(most)):
            low, high = decimal_of(schema[least]), decimal_of(schema[most])
            if low > high or (is_open and low == high):
                return True
    if kind == "object" and isinstance(schema.get("required"), list) and "patternProperties" not in schema:
        return any(property_of(schema, name) is False for name in schema["required"] if isinstance(name, str))
    return False


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if is_number(value):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _replace(node: dict[str, Any], references: list[dict[str, Any]]) -> None:
    for key, value in node.items():
        match key:
            case "properties" | "patternProperties":
                node[key] = {name: False if entry in references else entry for name, entry in value.items()}
            case "allOf" | "anyOf" | "oneOf" | "prefixItems":
                node[key] = [False if entry in references else entry for entry in value]
            case "additionalProperties" | "items" if value in references:
                node[key] = False
