"""The rules of a grammar for JSON of a schema.

The library writes schemas by itself (`%json`), with numbers as 64-bit floats. Where a schema holds numbers that no
such float can hold, the schemas around those numbers are written here, and the rest is left to the library.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from textmill_router.exact_json import decimal_of, dump_json, is_number, parse_json
from textmill_router.grammar.lark import JSON_BLANKS, escape, json_rule, literal
from textmill_router.grammar.schema.merge import NotMergeable, alternatives, any_value, property_of, types_of
from textmill_router.grammar.schema.normal_form import NormalSchema, normal_schema
from textmill_router.grammar.schema.number_text import (
    BOUNDS,
    are_bounds_misread,
    is_multiple,
    is_plain,
    is_rounded_step,
    lets_zero_through,
    library_step,
    listed_multiples,
    number_range,
    range_terminals,
)
from textmill_router.grammar.schema.unmatched import matches_nothing

_NUMBER_KEYS = frozenset({"multipleOf", *BOUNDS})
_STRING_KEYS = frozenset({"minLength", "maxLength", "pattern", "format"})
_KEY = r"/\"[^\"\\\x00-\x1f\x7f]*\"/"


@dataclass(frozen=True, slots=True)
class SchemaRules:
    """`body`: the right side of a rule that matches the JSON. `rules`: further rules that the body names.

    `weakened`: keywords of the schema that the rules keep by half or not at all.
    """

    body: str
    rules: tuple[str, ...]
    weakened: frozenset[str]


@lru_cache(maxsize=64)
def rules_of_text(schema_text: str, prefix: str, closes_objects: bool) -> SchemaRules:
    """`schema_rules` of the JSON text of a schema; the texts asked for last are kept."""
    return schema_rules(parse_json(schema_text), prefix=prefix, closes_objects=closes_objects)


def schema_rules(schema: Any, *, prefix: str, closes_objects: bool) -> SchemaRules:
    """The rules for a schema; their names begin with `prefix`, which is of small letters and digits.

    Raises BadSchema for a schema that no answer can be held to, RecursionError for deep nesting.
    """
    writer = _Writer(normal_schema(schema, closes_objects=closes_objects), prefix)
    body = writer.write_root()
    return SchemaRules(body, tuple(writer.rules), frozenset(writer.weakened))


class _Writer:
    """Collects the rules of one schema."""

    def __init__(self, schema: NormalSchema, prefix: str) -> None:
        self._root = schema.root
        self._definitions = schema.definitions
        self._prefix = prefix
        self._exact = _definitions_with_exact_numbers(schema.definitions)
        self._written: dict[str, str] = {}  # rules of definitions
        self._num_names = 0
        self.rules: list[str] = []
        self.weakened = set(schema.weakened)

    def write_root(self) -> str:
        body = self._value(self._root)
        if any(f"{self._prefix.upper()}_WS" in text for text in (*self.rules, body)):
            self.rules.append(f"{self._prefix.upper()}_WS: /{JSON_BLANKS.removesuffix('?')}/")
        return body

    # ---- values

    def _value(self, node: Any) -> str:
        """A body that matches the JSON of a schema in normal form."""
        if isinstance(node, dict) and set(node) == {"$ref"}:
            name = node["$ref"].removeprefix("#/$defs/")
            if name in self._exact:
                return self._definition(name)
        if not _has_exact_numbers(node, self._exact):
            return self._library_text(node)
        state = len(self.rules), self._num_names, dict(self._written)
        try:
            options = [
                self._typed(schema, name)
                for schema in alternatives(node, self._definitions)
                for name in types_of(schema)
            ]
        except NotMergeable:
            del self.rules[state[0] :]
            self._num_names, self._written = state[1:]
            return self._library_text(node)
        options = [option for option in options if option]
        return self._rule(" | ".join(dict.fromkeys(options))) if options else self._library_text({"enum": []})

    def _definition(self, name: str) -> str:
        if name not in self._written:
            rule = self._written[name] = self._new_name()
            self.rules.append(f"{rule}: {self._value_of_definition(name)}")
        return self._written[name]

    def _value_of_definition(self, name: str) -> str:
        return self._value(self._definitions[name])

    def _typed(self, schema: dict[str, Any], kind: str) -> str:
        """The values of one type that a plain schema allows; empty where there are none. Raises NotMergeable."""
        if "enum" in schema or "const" in schema:
            return self._constants(schema, kind)
        match kind:
            case "null":
                return '"null"'
            case "boolean":
                return '("true" | "false")'
            case "number":
                return self._number(schema)
            case "array":
                return self._array(schema)
            case "object":
                return self._object(schema)
        text = {"type": kind, **{key: schema[key] for key in schema.keys() & _STRING_KEYS}}
        return "" if self._is_unmatched(text) else self._library_text(text)

    def _is_unmatched(self, node: Any) -> bool:
        return node is False or matches_nothing(node, self._definitions)

    def _constants(self, schema: dict[str, Any], kind: str) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if schema.keys() - {"const", "enum", "type"} - _NUMBER_KEYS or ("const" in schema and "enum" in schema):
            raise NotMergeable
        allowed = [value for value in values if _json_type(value) == kind and _is_within(value, schema)]
        return " | ".join(self._constant(value) for value in allowed)

    def _constant(self, value: Any) -> str:
        if isinstance(value, dict):
            pairs = [f"{self._key(key)} {self._constant(entry)}" for key, entry in value.items()]
            return self._enclosed("{", self._comma.join(pairs), "}")
        if isinstance(value, list):
            return self._enclosed("[", self._comma.join(map(self._constant, value)), "]")
        return literal(dump_json(value) if is_number(value) else json.dumps(value, ensure_ascii=False)).strip()

    def _number(self, schema: dict[str, Any]) -> str:
        listed = schema.get("type", "number")
        is_integer = listed == "integer" or (
            isinstance(listed, list) and "integer" in listed and "number" not in listed
        )
        kept = {key: schema[key] for key in schema.keys() & _NUMBER_KEYS}
        plain = {"type": "integer" if is_integer else "number", **kept}
        if self._is_unmatched(plain):
            return ""
        if not _has_exact_numbers(plain, self._exact):
            return self._library_text(plain)
        numbers = number_range(kept, is_integer=is_integer)
        if numbers is None:
            return self._multiples(plain)
        self._num_names += 1
        name = f"{self._prefix.upper()}_{self._num_names}"
        lines = range_terminals(name, numbers)
        self.rules += lines
        return name if lines else ""

    def _multiples(self, schema: dict[str, Any]) -> str:
        """The multiples of a step that no float holds and that is no power of ten, between bounds if there are any."""
        if library_step(schema.get("multipleOf", 0)) is None:
            return self._library_text(schema)
        texts = listed_multiples(schema)
        if texts is None and are_bounds_misread(schema):
            self.weakened.add("multipleOf")
            del schema["multipleOf"]
        if texts is None:
            return self._library_text(schema)
        if not texts:
            return ""
        self._num_names += 1
        name = f"{self._prefix.upper()}_{self._num_names}"
        self.rules.append(f"{name}: /{'|'.join(texts)}/")
        return name

    # ---- arrays and objects

    def _array(self, schema: dict[str, Any]) -> str:
        first, items = schema.get("prefixItems", []), schema.get("items", True)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        ends = [place for place, entry in enumerate(first) if self._is_unmatched(entry)]
        if ends:
            most = min(ends[0], ends[0] if most is None else most)
        if most is not None:
            first = first[:most]
        if self._is_unmatched(items):
            items = False
        further = ""
        if items is not False and (most is None or most > len(first)):
            low = max(0, least - len(first))
            high = "" if most is None else str(most - len(first))
            item = self._value(items)
            if first:
                further = f"({self._comma} {item}){{{low},{high}}}"
            else:
                rest = f"{item} ({self._comma} {item}){{{max(0, low - 1)},{'' if most is None else most - 1}}}"
                return self._enclosed("[", rest if least else f"({rest})?", "]")
        elif least > len(first):
            return ""
        body = further
        for place in reversed(range(len(first))):
            comma = self._comma if place else ""
            body = f"{comma} {self._value(first[place])} {body}"
            body = f"({body})?" if place >= least else body
        return self._enclosed("[", body, "]")

    def _object(self, schema: dict[str, Any]) -> str:
        if schema.keys() & {"patternProperties", "minProperties", "maxProperties"}:
            raise NotMergeable
        required = schema.get("required", [])
        entries: list[tuple[str, bool]] = []
        names = [
            *schema.get("properties", {}),
            *(name for name in required if name not in schema.get("properties", {})),
        ]
        for name in names:
            value = property_of(schema, name)
            if not self._is_unmatched(value):
                entries.append((f"{self._key(name)} {self._value(value)}", name in required))
            elif name in required:
                return ""
        others = schema.get("additionalProperties", True)
        if not self._is_unmatched(others):
            pair = f'{self._other_key(names)} {self._blank} ":" {self._blank} {self._value(others)}'
            entries.append((f"{pair} ({self._comma} {pair})*", False))
        return self._enclosed("{", self._in_order(entries), "}")

    def _in_order(self, entries: list[tuple[str, bool]]) -> str:
        """The entries with commas between them, where those that are not required may be left out."""
        begun = begins = ""  # what follows behind another entry, and what stands where none has come yet
        for entry, is_required in reversed(entries):
            behind = f"{self._comma} {entry}"
            if is_required:
                begins = f"{entry} {begun}"
                begun = self._rule(f"{behind} {begun}")
            else:
                begins = f"{entry} {begun} | {begins}" if begins else f"({entry} {begun})?"
                begun = self._rule(f"({behind})? {begun}")
            begins = self._rule(begins)
        return begins

    def _key(self, name: str) -> str:
        return f'{literal(json.dumps(name, ensure_ascii=False)).strip()} {self._blank} ":" {self._blank}'

    def _other_key(self, names: list[str]) -> str:
        self._num_names += 1
        terminal = f"{self._prefix.upper()}_{self._num_names}"
        taken = "|".join(escape(json.dumps(name, ensure_ascii=False)) for name in names)
        self.rules.append(f"{terminal}: {_KEY} & ~/({taken})/" if names else f"{terminal}: {_KEY}")
        return terminal

    def _enclosed(self, opening: str, body: str, closing: str) -> str:
        inner = f"{self._blank} {body} " if body.strip() else ""
        return f'"{opening}" {inner}{self._blank} "{closing}"'

    @property
    def _blank(self) -> str:
        return f"{self._prefix.upper()}_WS?"

    @property
    def _comma(self) -> str:
        return f' {self._blank} "," {self._blank} '

    # ---- texts

    def _library_text(self, node: Any) -> str:
        """The schema as the library reads it; numbers that it cannot hold bound nothing."""
        names: dict[str, None] = {}
        root = self._softened(node, names)
        definitions: dict[str, Any] = {}
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in definitions:
                found: dict[str, None] = {}
                definitions[name] = self._softened(self._definitions[name], found)
                waiting += found
        root = root if isinstance(root, dict) else {} if root else {"enum": []}
        return json_rule(dump_json({**root, "$defs": definitions} if definitions else root))

    def _softened(self, node: Any, names: dict[str, None]) -> Any:
        if not isinstance(node, dict):
            return node
        if "exclusiveMinimum" in node and lets_zero_through(node):
            self.weakened.add("exclusiveMinimum")
        result = {}
        for key, value in node.items():
            match key:
                case "$ref":
                    names[value.removeprefix("#/$defs/")] = None
                    result[key] = value
                case "properties" | "patternProperties":
                    result[key] = {name: self._softened(entry, names) for name, entry in value.items()}
                case "allOf" | "anyOf" | "oneOf" | "prefixItems":
                    result[key] = [self._softened(entry, names) for entry in value]
                case "additionalProperties" | "items":
                    result[key] = self._softened(value, names)
                case "multipleOf" if is_number(value) and (step := library_step(value)) is not None:
                    result[key] = step
                case _ if _holds_exact_number(key, value):
                    self.weakened.add(key)
                    if key in ("const", "enum") and "type" not in node:
                        values = value if key == "enum" else [value]
                        result["type"] = list(dict.fromkeys(map(_json_type, values)))
                case _:
                    result[key] = value
        return result

    def _rule(self, body: str) -> str:
        if body.isidentifier() or not body:
            return body
        name = self._new_name()
        self.rules.append(f"{name}: {body}")
        return name

    def _new_name(self) -> str:
        self._num_names += 1
        return f"{self._prefix}_{self._num_names}"


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if is_number(value):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _is_within(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a constant obeys the bounds that stand beside it. Raises NotMergeable where that is not looked at."""
    if not is_number(value):
        return True
    number = decimal_of(value)
    tests: dict[str, Callable[[Any], bool]] = {
        "minimum": lambda bound: number >= decimal_of(bound),
        "maximum": lambda bound: number <= decimal_of(bound),
        "exclusiveMinimum": lambda bound: number > decimal_of(bound),
        "exclusiveMaximum": lambda bound: number < decimal_of(bound),
    }
    if "multipleOf" in schema:
        fits = is_multiple(number, schema["multipleOf"])
        if fits is None:
            raise NotMergeable
        if not fits:
            return False
    if "integer" in (schema.get("type"), *_listed(schema)) and not isinstance(value, int):
        raise NotMergeable
    return all(test(schema[key]) for key, test in tests.items() if is_number(schema.get(key)))


def _listed(schema: Mapping[str, Any]) -> list[Any]:
    named = schema.get("type")
    return named if isinstance(named, list) else []


def _holds_exact_number(key: str, value: Any) -> bool:
    """Whether the value of a keyword has a number that the library would change."""
    if key == "multipleOf":
        return is_number(value) and (library_step(value) is None or is_rounded_step(value))
    if key in _NUMBER_KEYS:
        return is_number(value) and not is_plain(value)
    return key in ("const", "enum") and any_value(value, lambda entry: is_number(entry) and not is_plain(entry))


def _has_exact_numbers(node: Any, definitions: set[str]) -> bool:
    """Whether a schema in normal form, or a definition that it refers to, has such a number."""
    waiting = [node]
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        if "exclusiveMinimum" in schema and lets_zero_through(schema):
            return True
        for key, value in schema.items():
            if key == "$ref" and value.removeprefix("#/$defs/") in definitions:
                return True
            if _holds_exact_number(key, value):
                return True
            if key in ("properties", "patternProperties"):
                waiting += value.values()
            elif key in ("allOf", "anyOf", "oneOf", "prefixItems"):
                waiting += value
            elif key in ("additionalProperties", "items"):
                waiting.append(value)
    return False


def _definitions_with_exact_numbers(definitions: Mapping[str, Any]) -> set[str]:
    found: set[str] = set()
    while True:
        more = {name for name, node in definitions.items() if name not in found and _has_exact_numbers(node, found)}
        if not more:
            return found
        found |= more
