"""A schema as the grammar's library reads it: references inside, objects closed, and only keywords that it knows.

Where the library knows no way to say a keyword, the normal form lets more through than the schema, and names the
keyword. The check of the finished answer holds the rest (`answer_check.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from textmill_router.grammar.schema.backtracking import BacktrackingPattern, NoPattern
from textmill_router.grammar.schema.circles import without_circles
from textmill_router.grammar.schema.conjunctions import joint_parts, walk
from textmill_router.grammar.schema.disjoint import are_disjoint
from textmill_router.grammar.schema.key_patterns import ANY_KEY, part_key_patterns
from textmill_router.grammar.schema.keyword_values import wrong_value
from textmill_router.grammar.schema.negation import ANNOTATIONS, keywords_of
from textmill_router.grammar.schema.number_text import lets_zero_through
from textmill_router.grammar.schema.patterns import is_readable, is_unmatched_text
from textmill_router.grammar.schema.schema_reader import NO_KEYS, OPEN, BadSchema, Keys, SchemaReader, names_all_keys
from textmill_router.grammar.schema.unmatched import without_unmatched

MAX_NODES = 5_000  # schemas looked at; references that stand beside other keywords are written out
MAX_TRIED = 300  # different expressions of a schema; to try one takes the event loop half a millisecond
MAX_COUNT = 10_000_000  # characters, items or keys: no answer is as long, so a larger maximum bounds nothing
KNOWN_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
_COPIED = frozenset(
    {
        "type", "const", "enum", "required", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
        "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "pattern",
    }
)  # fmt: skip
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_LATER = frozenset({"contains", "minContains", "maxContains", "unevaluatedItems"})  # left to the check of the answer


@dataclass(frozen=True, slots=True)
class NormalSchema:
    """`root` refers to `definitions` by `#/$defs/NAME`. `weakened`: keywords that the check of the answer must hold."""

    root: Any
    definitions: Mapping[str, Any]
    weakened: frozenset[str]


def normal_schema(schema: Any, *, closes_objects: bool) -> NormalSchema:
    """The normal form. `closes_objects`: objects have no keys but those that their schema names, where it says no more.

    Raises BadSchema for references that lead nowhere, for keywords of another shape than theirs, and where a
    reference at the root leads to what nothing matches; RecursionError for deep nesting.
    """
    writer = _Writer(schema, closes_objects)
    root = writer.write_root()
    definitions, weakened = writer.definitions, writer.weakened
    if writer.choices and not _are_choices_disjoint(schema, writer):
        weakened.add("oneOf")
    if part_key_patterns(root, definitions):
        weakened.add("patternProperties")
    if _lets_zero_through(root, definitions):
        weakened.add("exclusiveMinimum")
    root, lost = without_circles(root, definitions)
    weakened |= lost
    root = without_unmatched(root, definitions)
    if root is False:
        raise BadSchema("no text matches it")
    return NormalSchema(root, definitions, frozenset(weakened))


def _are_choices_disjoint(schema: Any, writer: "_Writer") -> bool:
    """Whether no value that the normal form lets through matches two alternatives of a `oneOf`, closed or open."""
    open_writer = writer
    if writer.closes_objects:
        open_writer = _Writer(schema, False, prefix="open")
        open_writer.write_root()
    definitions = {**writer.definitions, **open_writer.definitions}
    return len(writer.choices) == len(open_writer.choices) and all(
        are_disjoint(entries, others, definitions)
        for entries, others in zip(writer.choices, open_writer.choices, strict=True)
    )


def _lets_zero_through(root: Any, definitions: Mapping[str, Any]) -> bool:
    """Whether bounds of several schemas together are bounds that the library misreads."""
    if not any(node.get("exclusiveMinimum") == 0 for node in walk(root, definitions)):
        return False
    return any(
        lets_zero_through(*way) and not any(map(lets_zero_through, way))
        for ways in joint_parts(root, definitions)
        for way in ways
    )


class _Writer:
    """Writes the normal form of one schema."""

    def __init__(self, root: Any, closes_objects: bool, *, prefix: str = "") -> None:
        """`prefix` begins the names of definitions."""
        self._root = root
        self._prefix = prefix
        self.closes_objects = closes_objects
        self._reader = SchemaReader(root)
        self.definitions: dict[str, Any] = {}
        self.weakened = self._reader.weakened  # both find keywords that the check must hold
        self._names: dict[tuple[int, str], str] = {}  # of definitions
        self._entered: dict[tuple[int, str], str | None] = {}  # schemas being written, and their names if they have one
        self._expanded: set[tuple[int, str]] = set()  # references being written out
        self.choices: list[list[Any]] = []  # of `oneOf`
        self._tried: set[str] = set()  # expressions
        self._num_nodes = 0

    def write_root(self) -> Any:
        """The schema itself, as an object."""
        root = self._child(self._root, "")
        if isinstance(root, bool):
            return {} if root else {"enum": []}
        return root

    # ---- schemas of a value of their own

    def _child(self, node: Any, base: str) -> Any:
        """The schema of a root, a property or an item."""
        if isinstance(node, bool):
            return node
        node = self._object(node)
        base = self._reader.base_of(node, base)
        reference = self._reader.only_reference(node)
        if reference is not None:
            return self._definition(*self._reader.target(reference, base))
        return self._recursive((id(node), base), lambda: self._schema(node, base, NO_KEYS))

    def _recursive(self, key: tuple[int, str], write: Callable[[], Any]) -> Any:
        """The result of `write`, or a reference where the writer is inside the same schema already."""
        if key in self._entered:
            name = self._entered[key]
            if name is None:
                name = self._entered[key] = self._new_name()
            return _reference(name)
        self._entered[key] = None
        written = write()
        name = self._entered.pop(key)
        if name is None:
            return written
        self.definitions[name] = written
        return _reference(name)

    def _definition(self, node: Any, base: str) -> Any:
        seen: set[int] = set()
        while isinstance(node, dict) and (reference := self._reader.only_reference(node)) is not None:
            if id(node) in seen:
                return {}  # a circle says nothing
            seen.add(id(node))
            node, base = self._reader.target(reference, self._reader.base_of(node, base))
        if isinstance(node, bool):
            return node
        key = (id(node), self._reader.base_of(node, base))
        if key not in self._names:
            if key in self._entered:
                return self._recursive(key, dict)
            self._names[key] = name = self._new_name()
            self.definitions[name] = self._schema(node, key[1], NO_KEYS)
        name = self._names[key]
        # The library sees that nothing matches false, but not where a reference leads there.
        return False if self.definitions[name] is False else _reference(name)

    def _new_name(self) -> str:
        name = f"{self._prefix}{len(self.definitions)}"
        self.definitions[name] = {}
        return name

    # ---- one schema

    def _schema(self, node: Any, base: str, outside: Keys, *, is_part: bool = False) -> Any:
        """The schema where the keys of `outside` are named beside it. `is_part`: others hold for the same value."""
        if isinstance(node, bool):
            if node and outside.has_any and not outside.is_spoken_of and self.closes_objects:
                node = {}
            else:
                return node
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise BadSchema(f"its references spell out more than {MAX_NODES} schemas; make it simpler")
        base = self._reader.base_of(self._object(node), base)
        wrong = wrong_value(node)
        if wrong is not None:
            raise BadSchema(wrong)
        node = self._reader.without_conditions(node)
        keys = self._reader.keys(node, base, set())
        own = keys.has_any
        keys.names.update(outside.names)
        keys.patterns.update(outside.patterns)
        choices = [key for key in ("anyOf", "oneOf") if isinstance(node.get(key), list)]
        closes = self.closes_objects and not (keys.is_spoken_of or outside.is_spoken_of) and keys.has_any
        is_closed = closes  # here, or in each alternative
        inside = NO_KEYS if not (keys.is_spoken_of or outside.is_spoken_of) else OPEN
        has_hidden_choices = closes and self._reader.has_hidden_choices(node, base)
        if closes and len(choices) == 1 and not has_hidden_choices:
            inside, closes = keys, False
        elif closes and (choices or has_hidden_choices):
            inside, closes = OPEN, self._reader.add_keys_of_choices(node, base, keys)
            is_closed = False  # the keys of all alternatives come together
        if closes and keys.needs > len(keys.names) and not keys.patterns:
            closes = is_closed = False
        result: dict[str, Any] = {}
        parts: list[Any] = []
        if not is_part and own and not keys.has_type:
            result["type"] = "object"
        for key, value in node.items():
            if key == "unevaluatedProperties" and value is False and is_closed:
                continue  # closing says it
            self._add(key, value, node, base, result, parts, inside)
        if closes:
            closing = _closing(keys, {} if parts else result)
            if keys.patterns:
                closing["patternProperties"] = self._readable_entries(closing["patternProperties"])
            if parts:
                parts.append(closing)
            else:
                result.update(closing)
        if parts:
            result["allOf"] = _without_repeats(result, parts)
        self._bound_keys(result, keys, is_closed=closes, is_part=is_part)
        result = _patterns_beside_others(result)
        return result if _can_match(result) else False

    def _add(
        self,
        key: str,
        value: Any,
        node: Mapping[str, Any],
        base: str,
        result: dict[str, Any],
        parts: list[Any],
        inside: Keys,
    ) -> None:
        """One keyword."""
        match key:
            case "properties" | "patternProperties":
                entries = {name: self._child(entry, base) for name, entry in self._mapping(key, value).items()}
                result[key] = entries if key == "properties" else self._readable_entries(entries)
            case "additionalProperties":
                result[key] = self._child(value, base)
            case "unevaluatedProperties":
                if "additionalProperties" not in node and not (value is False and names_all_keys(node)):
                    self.weakened.add(key)
                elif "additionalProperties" not in node:
                    result["additionalProperties"] = False
            case "items" | "prefixItems" | "additionalItems":
                self._add_items(node, base, result)
            case "$ref" | "$dynamicRef" | "$recursiveRef":
                if key != "$ref":
                    self.weakened.add(key)  # where the reference leads depends on the way to it
                parts += _flat(self._expanded_reference(value, base))
            case "allOf":
                for entry in self._list(key, value):
                    parts += _flat(self._schema(entry, base, OPEN, is_part=True))
            case "anyOf" | "oneOf":
                is_alone = len(keywords_of(node) - {"type"}) == 1 and not inside.has_any and not inside.is_spoken_of
                choice = self._list(key, value)
                if is_alone and "type" not in node:
                    written = [self._child(entry, base) for entry in choice]
                else:
                    written = [self._schema(entry, base, inside, is_part=True) for entry in choice]
                result[key] = written
                if key == "oneOf":
                    self.choices.append(written)
            case "format":
                if value in KNOWN_FORMATS and not self._excludes(node.get("pattern"), value):
                    result[key] = value
            case "pattern" if isinstance(value, str):
                if self._is_readable(key, value):
                    result[key] = value
            case "exclusiveMinimum" | "exclusiveMaximum" if isinstance(value, bool):  # draft 4
                bound = "minimum" if key == "exclusiveMinimum" else "maximum"
                if value and bound in node:
                    result[key] = node[bound]
            case "uniqueItems":
                if value is True:
                    self.weakened.add(key)
            case _ if key in _LATER:
                self.weakened.add(key)
            case _ if key in _COUNTS:
                self._add_count(key, value, result)
            case _ if key in _COPIED:
                result[key] = value

    @staticmethod
    def _add_count(key: str, value: float, result: dict[str, Any]) -> None:
        if value <= MAX_COUNT:
            result[key] = int(value)
        elif key.startswith("min"):
            raise BadSchema(f"`{key}` asks for more than {MAX_COUNT}, which no answer has")

    def _add_items(self, node: Mapping[str, Any], base: str, result: dict[str, Any]) -> None:
        if "items" in result or "prefixItems" in result:
            return
        items, first = node.get("items"), node.get("prefixItems")
        if isinstance(items, list):
            first, items = items, node.get("additionalItems")
        if first is not None:
            result["prefixItems"] = [self._child(entry, base) for entry in self._list("prefixItems", first)]
        if items is not None:
            result["items"] = self._child(items, base)

    def _expanded_reference(self, reference: object, base: str) -> Any:
        """The schema that a reference beside other keywords leads to, written out."""
        node, base = self._reader.target(reference, base)
        key = (id(node), base)
        if key in self._expanded:
            return {}  # a circle says nothing
        self._expanded.add(key)
        try:
            return self._schema(node, base, OPEN, is_part=True)
        finally:
            self._expanded.remove(key)

    def _readable_entries(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """The schemas by pattern; any key with any value where an expression is one that the library cannot read."""
        unread = [expression for expression in entries if not self._is_readable("patternProperties", expression)]
        return {ANY_KEY: True} if unread else dict(entries)

    def _is_readable(self, key: str, expression: str) -> bool:
        """Whether the library can read an expression; if not, the check of the answer holds the keyword."""
        self._tried.add(expression)
        if len(self._tried) > MAX_TRIED or is_readable(expression):
            return True  # of very many expressions the compiler says which the library cannot read
        try:
            BacktrackingPattern(expression)
        except NoPattern as error:
            raise BadSchema(f"`{key}` has {expression!r}, which is no regular expression: {error}") from None
        self.weakened.add(key)
        return False

    @staticmethod
    def _excludes(expression: object, name: str) -> bool:
        """Whether a format contradicts the pattern beside it; a format is an annotation, and the pattern counts."""
        is_pattern = isinstance(expression, str) and is_readable(expression)
        return is_pattern and is_unmatched_text({"pattern": expression, "format": name})

    def _bound_keys(self, result: dict[str, Any], keys: Keys, *, is_closed: bool, is_part: bool) -> None:
        """The library counts keys where all named ones are required, and up to one of those that are not."""
        required = result.get("required", [])
        num_required = len(set(required)) if isinstance(required, list) else 0
        least, most = result.get("minProperties"), result.get("maxProperties")
        if isinstance(least, int) and least <= num_required:
            del result["minProperties"]
            least = None
        if isinstance(most, int) and is_closed and not keys.patterns and most >= len(keys.names):
            del result["maxProperties"]
            most = None
        has_others = is_part or bool(result.keys() & {"allOf", "anyOf", "oneOf"})
        if not has_others and len({*result.get("properties", ()), *keys.names}) <= num_required:
            return
        is_listed = result.get("additionalProperties") is False and "patternProperties" not in result
        if not has_others and is_listed and (least or 0) <= num_required + 1 and most in (None, num_required + 1):
            return
        if not has_others and is_listed and least is None and most == num_required:
            named = {name: entry if name in required else False for name, entry in result.get("properties", {}).items()}
            result["properties"] = named
            del result["maxProperties"]
        for name in ("minProperties", "maxProperties"):
            if name in result:
                del result[name]
                self.weakened.add(name)

    # ---- shapes

    @staticmethod
    def _object(node: Any) -> dict[str, Any]:
        if not isinstance(node, dict):
            raise BadSchema("a schema inside it is neither an object nor a boolean")
        return node

    @staticmethod
    def _mapping(key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise BadSchema(f"`{key}` must be an object")
        return value

    @staticmethod
    def _list(key: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise BadSchema(f"`{key}` must be an array")
        return value


def _flat(part: Any) -> list[Any]:
    """The part and the parts inside, side by side: the library reads no deep nesting."""
    if not isinstance(part, dict) or "allOf" not in part:
        return [part]
    own = {key: value for key, value in part.items() if key != "allOf"}
    return [*([own] if own else []), *part["allOf"]]


def _patterns_beside_others(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with `additionalProperties` behind the patterns: the library reads no more than up to an `anyOf`."""
    if "patternProperties" not in schema or "additionalProperties" not in schema:
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "patternProperties":
            result |= {key: value, "additionalProperties": schema["additionalProperties"]}
        elif key != "additionalProperties":
            result[key] = value
    return result


def _can_match(schema: Mapping[str, Any]) -> bool:
    """Whether an object can have all keys that it needs, as far as its own keywords show."""
    if schema.get("type") != "object" or not isinstance(schema.get("required"), list):
        return True
    others = True if "patternProperties" in schema else schema.get("additionalProperties", True)
    properties = schema.get("properties", {})
    return all(properties.get(name, others) is not False for name in schema["required"])


def _without_repeats(schema: Mapping[str, Any], parts: list[Any]) -> list[Any]:
    """The parts of one schema, each property's schema said once: the library cannot intersect circular references."""
    said: dict[str, list[Any]] = {name: [entry] for name, entry in schema.get("properties", {}).items()}
    single = []
    for part in parts:
        if isinstance(part, dict) and "properties" in part:
            properties = {}
            for name, entry in part["properties"].items():
                earlier = said.setdefault(name, [])
                properties[name] = True if entry in earlier else entry
                earlier.append(entry)
            part = {**part, "properties": properties}
        single.append(part)
    return single


def _closing(keys: Keys, said: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that leave an object no keys but these; `said` has the schemas of some."""
    closing: dict[str, Any] = {"properties": {**said.get("properties", {})}, "additionalProperties": False}
    for name in keys.names:
        closing["properties"].setdefault(name, True)
    if keys.patterns:
        patterns = {**dict.fromkeys(keys.patterns, True), **said.get("patternProperties", {})}
        closing["patternProperties"] = patterns
    return closing


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


assert not _COPIED & ANNOTATIONS
