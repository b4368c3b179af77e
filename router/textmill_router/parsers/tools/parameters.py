"""The parameters that a tool's schema declares, for formats that write each parameter by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textmill_router.errors import ValidationFailed

ALL_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
MAX_LOOKED_AT = 1000  # schemas that one parameter's types may take, because references can branch without end
MAX_NESTED_SCHEMAS = 16
_DEFINITIONS = ("$defs", "definitions")
# Keywords beside the properties of a schema that leave the values of the properties alone.
_ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated", "strict", *_DEFINITIONS}
)
_ALTERNATIVES = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
_READABLE = frozenset({"type", "properties", "required", "additionalProperties", *_ANNOTATIONS})


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a tool. `schema` can stand alone, because it holds the definitions to which it refers."""

    name: str
    schema: Mapping[str, Any]
    is_required: bool


class Parameters:
    """Looks up the parameters of one schema of arguments."""

    def __init__(self, schema: Mapping[str, Any] | None) -> None:
        self._root: Mapping[str, Any] = schema or {}
        properties = self._root.get("properties")
        self._properties: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
        others = self._root.get("additionalProperties")
        self._others: Mapping[str, Any] = others if isinstance(others, Mapping) else {"type": "string"}
        self._known_types: dict[str | None, frozenset[str]] = {}  # by name; under None for names without an entry
        self._num_looks = 0

    @property
    def others(self) -> Mapping[str, Any] | None:
        """The schema of parameters that have no entry of their own, where such may be given; else None.

        A parameter of which the schema says nothing is a string.
        """
        return None if self._root.get("additionalProperties") is False else self._standing_alone(self._others)

    def types_of(self, name: str) -> frozenset[str]:
        """Return the JSON types that a value of this parameter may have, at least one."""
        known = name if name in self._properties else None
        if known not in self._known_types:
            self._num_looks = 0
            self._known_types[known] = self._types(self._properties.get(name, self._others), 0)
        return self._known_types[known]

    def string_rules(self, name: str) -> Mapping[str, Any] | None:
        """Return the rules for a string of this parameter, or None where several alternatives have rules."""
        schema = self._properties.get(name, self._others)
        for _ in range(MAX_NESTED_SCHEMAS):
            if not isinstance(schema, Mapping):
                return {}
            inner = [self._resolved(schema["$ref"])] if "$ref" in schema else []
            inner += _entries(schema, "allOf")
            for key in ("anyOf", "oneOf"):
                strings = [entry for entry in _entries(schema, key) if "string" in self._types(entry, 0)]
                if len(strings) > 1 and any(_says_more_than_type(entry) for entry in strings):
                    return None
                inner += strings[:1]
            if not inner:
                return schema
            merged = {key: value for key, value in schema.items() if key not in _ALTERNATIVES}
            for entry in inner:
                if not isinstance(entry, Mapping) or entry.keys() & merged.keys() - _ANNOTATIONS - {"type"}:
                    return None
                merged = {**entry, **merged}
            schema = merged
        return None

    def declared(self, tool_name: str) -> tuple[Parameter, ...]:
        """Return all parameters in the order of the schema. Raises ValidationFailed if a schema says more than types.

        Such a schema (`anyOf` over whole argument lists, for example) rules how parameters go together, which a
        format that writes them one by one cannot enforce.
        """
        for key in self._root:
            if key not in _READABLE:
                raise ValidationFailed(
                    f"the parameters of the tool `{tool_name}` cannot be enforced in this model's format because of "
                    f"`{key}`: say it inside `properties`, or leave it out",
                    field="tools",
                )
        required = _entries(self._root, "required")
        names = [*self._properties, *(name for name in required if name not in self._properties)]
        return tuple(
            Parameter(name, self._standing_alone(self._properties.get(name, self._others)), name in required)
            for name in names
        )

    def _standing_alone(self, schema: Any) -> Mapping[str, Any]:
        if not isinstance(schema, Mapping):
            return {}
        definitions = {key: self._root[key] for key in _DEFINITIONS if key in self._root}
        return {**definitions, **schema} if definitions and "$ref" in str(schema) else schema

    def _types(self, schema: Any, depth: int) -> frozenset[str]:
        self._num_looks += 1
        if not isinstance(schema, Mapping) or depth > MAX_NESTED_SCHEMAS or self._num_looks > MAX_LOOKED_AT:
            return ALL_TYPES
        types = ALL_TYPES
        if "$ref" in schema:
            types &= self._types(self._resolved(schema["$ref"]), depth + 1)
        if "type" in schema:
            types &= _named_types(schema["type"])
        if isinstance(schema.get("enum"), list):
            types &= frozenset(json_type(value) for value in schema["enum"])
        if "const" in schema:
            types &= {json_type(schema["const"])}
        for key in ("anyOf", "oneOf"):
            if entries := _entries(schema, key):
                types &= frozenset[str]().union(*(self._types(entry, depth + 1) for entry in entries))
        for entry in _entries(schema, "allOf"):
            types &= self._types(entry, depth + 1)
        return types or ALL_TYPES

    def _resolved(self, reference: Any) -> Any:
        """Return the schema to which a reference points, or None."""
        found: Any = self._root
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        for step in reference.removeprefix("#").split("/")[1:]:
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        return found


def json_type(value: object) -> str:
    """Return the JSON type of a decoded value. A whole number is an integer."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "number"
        case list():
            return "array"
    return "object"


def _entries(schema: Mapping[str, Any], key: str) -> list[Any]:
    entries = schema.get(key)
    return entries if isinstance(entries, list) else []


def _says_more_than_type(schema: Any) -> bool:
    return isinstance(schema, Mapping) and bool(schema.keys() - _ANNOTATIONS - {"type"})


def _named_types(named: object) -> frozenset[str]:
    names = named if isinstance(named, list) else [named]
    return frozenset(name for name in ALL_TYPES if name in names or (name == "integer" and "number" in names))
