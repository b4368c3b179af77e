"""What the values of a schema's keywords must be, by JSON Schema's own schema."""

from collections.abc import Callable, Mapping
from typing import Any

from textmill_router.exact_json import decimal_of, dump_json, is_number

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
MAX_SHOWN = 80  # characters of a client's value in a sentence

_Rule = tuple[Callable[[Any], bool], str]


def wrong_value(schema: Mapping[str, Any]) -> str | None:
    """A sentence about the first keyword whose value is none that the keyword can have; None where all are good."""
    for key, value in schema.items():
        rule = _RULES.get(key)
        if rule is not None and not rule[0](value):
            return f"`{key}` must be {rule[1]}, found {dump_json(value)[:MAX_SHOWN]}"
    return None


def _is_count(value: Any) -> bool:
    return is_number(value) and value >= 0 and value == value // 1


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


_NUMBER: _Rule = (is_number, "a number")
_BOUND: _Rule = (lambda value: is_number(value) or isinstance(value, bool), "a number")  # a boolean in draft 4
_COUNT: _Rule = (_is_count, "a whole number of at least 0")
_SCHEMA: _Rule = (_is_schema, "a schema: an object or a boolean")
_OBJECT: _Rule = (lambda value: isinstance(value, dict), "an object")
_RULES: Mapping[str, _Rule] = {
    "type": (_is_type, f"one of {', '.join(f'`{name}`' for name in TYPES)}, or an array of these"),
    "enum": (lambda value: isinstance(value, list), "an array"),
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _BOUND,
    "exclusiveMaximum": _BOUND,
    "multipleOf": (lambda value: is_number(value) and decimal_of(value) > 0, "a number above 0"),
    "pattern": (lambda value: isinstance(value, str), "a text"),
    "required": (_are_texts, "an array of texts"),
    "uniqueItems": (lambda value: isinstance(value, bool), "a boolean"),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("minContains", "maxContains"), _COUNT),
    **dict.fromkeys(("properties", "patternProperties", "dependentSchemas", "dependentRequired"), _OBJECT),
    "dependencies": _OBJECT,
    **dict.fromkeys(("not", "if", "then", "else", "contains", "propertyNames", "additionalProperties"), _SCHEMA),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems", "additionalItems"), _SCHEMA),
    "items": (lambda value: _is_schema(value) or isinstance(value, list), "a schema: an object or a boolean"),
}
