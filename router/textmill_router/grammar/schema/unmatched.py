"""Definitions that nothing matches, said as `false` where they are referred to.

The library leaves out an alternative or a property that nothing matches, but not where a reference leads to the schema.
"""

from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Any

from textmill_router.exact_json import decimal_of, is_number
from textmill_router.grammar.schema.conjunctions import schemas_of_key, walk
from textmill_router.grammar.schema.merge import TYPES, NotMergeable, alternatives, types_of
from textmill_router.grammar.schema.patterns import is_unmatched_text

_TEXT_KEYS = frozenset({"minLength", "maxLength", "pattern", "format"})
_LOW, _HIGH = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
MAX_STEPPED = 10**15  # bounds between which multiples are looked for
MAX_VALUES = 6  # needed values inside needed values
MAX_DEPTH = 12  # of parts inside parts
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


def matches_nothing(node: Any, definitions: Mapping[str, Any], depth: int = 0) -> bool:
    """Whether no value matches, as far as types, constants, bounds and needed values inside show.

    `depth`: how many values lie around this one.
    """
    if not _types(node, definitions, 0):
        return True
    try:
        return all(_contradicts(way, definitions, depth) for way in alternatives(node, definitions))
    except NotMergeable:
        return False


def _types(node: Any, definitions: Mapping[str, Any], depth: int) -> frozenset[str]:
    """The types of values that can match, and perhaps more."""
    if node is False:
        return frozenset()
    found = frozenset(TYPES)
    if node is True or depth > MAX_DEPTH:
        return found
    values = [node["const"]] if "const" in node else node.get("enum")
    if isinstance(values, list):
        found &= frozenset(map(_json_type, values))
    if "type" in node:
        found &= frozenset(types_of(node))
    if "$ref" in node:
        found &= _types(definitions[node["$ref"].removeprefix("#/$defs/")], definitions, depth + 1)
    for entry in node.get("allOf", ()):
        found &= _types(entry, definitions, depth + 1)
    for choice in ("anyOf", "oneOf"):
        if choice in node:
            found &= frozenset().union(*(_types(entry, definitions, depth + 1) for entry in node[choice]))
    return found


def _contradicts(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int) -> bool:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    types = types_of(schema)
    if isinstance(values, list):
        return not any(_json_type(value) in types and _is_within(value, schema) for value in values)
    return all(_has_none(schema, kind, definitions, depth) for kind in types)


def _has_none(schema: Mapping[str, Any], kind: str, definitions: Mapping[str, Any], depth: int) -> bool:
    """Whether no value of the type matches."""
    if any(_is_empty(schema, *bounds) for bounds in _BOUNDS.get(kind, ())):
        return True
    if kind == "number":
        return _has_no_step(schema)
    if kind == "string" and "pattern" in schema:
        return is_unmatched_text({key: schema[key] for key in schema.keys() & _TEXT_KEYS})
    if depth >= MAX_VALUES:
        return False
    needed: list[list[Any]] = []
    if kind == "object":
        needed = [schemas_of_key(schema, name) for name in schema.get("required", ())]
    elif kind == "array":
        first, least = schema.get("prefixItems", []), schema.get("minItems", 0)
        needed = [[entry] for entry in first[:least]]
        needed += [[schema.get("items", True)]] if least > len(first) else []
    return any(matches_nothing(_together(schemas), definitions, depth + 1) for schemas in needed)


def _together(schemas: list[Any]) -> Any:
    return schemas[0] if len(schemas) == 1 else {"allOf": schemas}


def _is_empty(schema: Mapping[str, Any], least: str, most: str, is_open: bool) -> bool:
    if not (is_number(schema.get(least)) and is_number(schema.get(most))):
        return False
    low, high = decimal_of(schema[least]), decimal_of(schema[most])
    return low > high or (is_open and low == high)


def _has_no_step(schema: Mapping[str, Any]) -> bool:
    """Whether no multiple lies between the bounds."""
    step = schema.get("multipleOf", 1 if schema.get("type") in ("integer", ["integer"]) else None)
    if not isinstance(step, int):
        return False
    lows = [(decimal_of(schema[key]), key == "exclusiveMinimum") for key in _LOW if is_number(schema.get(key))]
    highs = [(decimal_of(schema[key]), key == "exclusiveMaximum") for key in _HIGH if is_number(schema.get(key))]
    if not lows or not highs or max(abs(bound) for bound, _ in (*lows, *highs)) > MAX_STEPPED:
        return False
    least = max(bound for bound, _ in lows)
    value = (least / step).to_integral_value(ROUND_CEILING) * step
    value += step if any(is_open and value == bound for bound, is_open in lows) else 0
    return any(value > bound or (is_open and value == bound) for bound, is_open in highs)


def _is_within(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a constant lies between the bounds beside it."""
    if is_number(value):
        number = decimal_of(value)
        tests: dict[str, Callable[[Decimal], bool]] = {
            "minimum": lambda bound: number >= bound,
            "exclusiveMinimum": lambda bound: number > bound,
            "maximum": lambda bound: number <= bound,
            "exclusiveMaximum": lambda bound: number < bound,
        }
        return all(test(decimal_of(schema[key])) for key, test in tests.items() if is_number(schema.get(key)))
    if isinstance(value, str):
        return not len(value) < schema.get("minLength", 0) and not len(value) > schema.get("maxLength", len(value))
    return True


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
