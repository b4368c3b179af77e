"""Keywords that the grammar's library does not know, said by those that the library knows."""

from collections.abc import Mapping
from typing import Any

from textmill_router.exact_json import dump_json

ANNOTATIONS = frozenset(
    {
        "$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$comment", "$defs",
        "definitions", "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly",
        "contentMediaType", "contentEncoding", "contentSchema",
    }
)  # fmt: skip
_TYPES = ("null", "boolean", "number", "string", "array", "object")
MAX_ALTERNATIVES = 4  # conditions of one schema; each doubles the ways in which an object can be written


def keywords_of(schema: Mapping[str, Any]) -> set[str]:
    """The parts of a schema that constrain, without annotations."""
    return {key for key in schema if key not in ANNOTATIONS}


def without_conditions(schema: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The schema with `if`, `not`, dependencies and `propertyNames` said by other keywords.

    The second result names the keywords of which less was said than the schema demands: those let more through.
    """
    result = {key: value for key, value in schema.items() if key not in _CONDITIONS}
    weakened: set[str] = set()
    alternatives: list[list[Any]] = []
    if "if" in schema and ("then" in schema or "else" in schema):
        otherwise, is_exact = negated(schema["if"], schema)
        alternatives.append([_both(schema["if"], schema.get("then", True)), _both(otherwise, schema.get("else", True))])
        weakened |= set() if is_exact else {"if"}
    for key, dependent in _dependencies(schema).items():
        needed = {"required": dependent} if isinstance(dependent, list) else dependent
        alternatives.append([{"properties": {key: False}}, needed])
    if "not" in schema:
        opposite, is_exact = negated(schema["not"], schema)
        weakened |= set() if is_exact else {"not"}
        if opposite is False:
            return {"enum": []}, weakened
        _add(result, opposite, alternatives)
    if "propertyNames" in schema and not _say_names(result, schema["propertyNames"]):
        weakened.add("propertyNames")
    if len(alternatives) > MAX_ALTERNATIVES:
        return result, weakened | (_CONDITIONS & schema.keys())
    if len(alternatives) == 1 and not {"anyOf", "oneOf"} & result.keys():
        result["anyOf"] = alternatives[0]
    elif alternatives:
        result["allOf"] = [*result.get("allOf", ()), *({"anyOf": entries} for entries in alternatives)]
    return result, weakened


_CONDITIONS = frozenset(
    {"if", "then", "else", "not", "propertyNames", "dependentRequired", "dependentSchemas", "dependencies"}
)


def negated(schema: Any, around: Mapping[str, Any]) -> tuple[Any, bool]:
    """A schema for values that do not match, and whether that schema is exact. An inexact schema lets more through.

    `around` is the schema beside which the result will stand: what its own `enum` allows bounds the opposite.
    """
    if isinstance(schema, bool):
        return not schema, True
    if not isinstance(schema, dict):
        return True, False
    said = keywords_of(schema)
    if not said:
        return False, True
    if said == {"type"}:
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        is_exact = "integer" not in named or "number" in named
        others = [name for name in _TYPES if name not in named]
        return ({"type": others} if others else False), is_exact
    if said in ({"const"}, {"enum"}):
        return _other_values(_values_of(schema), around)
    if said == {"anyOf"} and isinstance(schema["anyOf"], list):
        opposites = [negated(entry, around) for entry in schema["anyOf"]]
        return {"allOf": [opposite for opposite, _ in opposites]}, all(is_exact for _, is_exact in opposites)
    if said <= {"type", "properties", "required"} and schema.get("type", "object") == "object":
        return _other_objects(schema, around)
    return True, False


def _other_objects(schema: Mapping[str, Any], around: Mapping[str, Any]) -> tuple[Any, bool]:
    ways: list[Any] = []
    is_exact = True
    declared = around.get("properties")
    declared = declared if isinstance(declared, dict) else {}
    for name in schema.get("required", ()):
        ways.append({"properties": {name: False}})
    for name, value in schema.get("properties", {}).items():
        beside = declared.get(name)
        opposite, is_so = negated(value, beside if isinstance(beside, dict) else {})
        is_exact = is_exact and is_so
        if opposite is not False:
            ways.append({"properties": {name: opposite}, "required": [name]})
    if not ways:
        return False, is_exact
    return (ways[0] if len(ways) == 1 else {"anyOf": ways}), is_exact


def _values_of(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _other_values(values: list[Any] | None, around: Mapping[str, Any]) -> tuple[Any, bool]:
    allowed = _values_of(around)
    if around.get("type") == "boolean" and allowed is None:
        allowed = [True, False]
    if values is None or allowed is None:
        return True, False
    excluded = {dump_json(value) for value in values}
    rest = [value for value in allowed if dump_json(value) not in excluded]
    return ({"enum": rest} if rest else False), True


def _both(first: Any, second: Any) -> Any:
    if first is True:
        return second
    return first if second is True else {"allOf": [first, second]}


def _add(result: dict[str, Any], opposite: Any, alternatives: list[list[Any]]) -> None:
    if isinstance(opposite, dict) and set(opposite) == {"anyOf"}:
        alternatives.append(opposite["anyOf"])
    elif isinstance(opposite, dict):
        result["allOf"] = [*result.get("allOf", ()), opposite]


def _dependencies(schema: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for keyword in ("dependencies", "dependentSchemas", "dependentRequired"):
        if isinstance(schema.get(keyword), dict):
            for key, dependent in schema[keyword].items():
                dependent = [dependent] if isinstance(dependent, str) else dependent
                needed = {"required": dependent} if isinstance(dependent, list) else dependent
                found[key] = _both(found[key], needed) if key in found else needed
    return found


def _say_names(result: dict[str, Any], names: Any) -> bool:
    """Say which keys an object may have by its properties and their patterns; False where that does not say all."""
    if names is True or not isinstance(names, dict):
        return names is True
    said = keywords_of(names) - {"type"}
    value = result.get("additionalProperties", True)
    values = _values_of(names)
    if said in ({"const"}, {"enum"}) and values is not None and "patternProperties" not in result:
        properties = dict(result.get("properties", {}))
        allowed = [name for name in values if isinstance(name, str)]
        properties = {name: schema if name in allowed else False for name, schema in properties.items()}
        result["properties"] = {**properties, **{name: value for name in allowed if name not in properties}}
        result["additionalProperties"] = False
        return True
    if "properties" in result or "patternProperties" in result:
        return False
    if said == {"pattern"}:
        result["patternProperties"] = {names["pattern"]: value}
    elif said and said <= {"minLength", "maxLength"}:
        result["patternProperties"] = {f"^[\\s\\S]{{{names.get('minLength', 0)},{names.get('maxLength', '')}}}$": value}
    else:
        return False
    result["additionalProperties"] = False
    return True
