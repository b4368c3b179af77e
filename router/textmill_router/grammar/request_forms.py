"""The shapes in which requests of both dialects ask for an output that matches a schema or an expression."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from textmill_router.errors import ValidationFailed
from textmill_router.exact_json import dump_json, parse_json
from textmill_router.grammar.gbnf import BadGrammar, LarkRules, read_gbnf
from textmill_router.grammar.lark import regex_rule
from textmill_router.grammar.schema.rules import SchemaRules, rules_of_text
from textmill_router.grammar.schema.schema_reader import BadSchema
from textmill_router.request import Grammar


class AskedKind(Enum):
    """The language of the text that the output must match."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GBNF = "gbnf"


@dataclass(frozen=True, slots=True)
class AskedGrammar:
    """A schema or an expression that the output must match, as the request wrote it.

    `body_field` names the part of the body. `is_strict` says that the grammar alone must hold the whole schema.
    """

    kind: AskedKind
    text: str
    body_field: str = field(default="grammar", compare=False)
    is_strict: bool = False

    def rules(self, *, closes_objects: bool = True) -> SchemaRules:
        """The rules of a grammar for this text. Raises ValidationFailed where no rules can match the text."""
        if self.kind is AskedKind.REGEX:
            return SchemaRules(regex_rule(self.text), (), frozenset())
        if self.kind is AskedKind.GBNF:
            found = _checked_gbnf(self.text, self.body_field)
            return SchemaRules(found.start, found.rules, frozenset())
        return checked_rules(
            self.text, "json", field=self.body_field, is_strict=self.is_strict, closes_objects=closes_objects
        )

    def whole_output(self, *, closes_objects: bool = True) -> Grammar:
        """The grammar of an output that matches this text and holds nothing else. Raises ValidationFailed."""
        found = self.rules(closes_objects=closes_objects)
        return Grammar("\n".join([f"start: {found.body}", *found.rules]))


def checked_rules(schema_text: str, prefix: str, *, field: str, is_strict: bool, closes_objects: bool) -> SchemaRules:
    """The rules of a schema; their names begin with `prefix`.

    Raises ValidationFailed for a schema that cannot be used, and for a strict one that rules alone cannot hold.
    """
    name = field.partition(".")[0]
    if len(schema_text) > MAX_SCHEMA_BYTES:
        raise _refuse(name, f"must have at most {MAX_SCHEMA_BYTES} bytes, found {len(schema_text)}; make it smaller")
    try:
        found = rules_of_text(schema_text, prefix, closes_objects)
    except BadSchema as error:
        raise _refuse(name, f"does not compile: {error}") from None
    except RecursionError:
        raise _refuse(name, "must be a JSON schema, found one that is nested too deeply") from None
    if is_strict and found.weakened:
        raise not_strict(name, found.weakened)
    return found


def not_strict(field: str, keywords: Iterable[str]) -> ValidationFailed:
    """The refusal of a strict schema for keywords that rules alone cannot hold."""
    keys = ", ".join(f"`{key}`" for key in sorted(keywords))
    return _refuse(
        field, f"cannot be strict because of {keys}: leave the keyword or `strict` out, and the answer is checked"
    )


MAX_GBNF_CHARACTERS = 64 * 1024
MAX_SCHEMA_BYTES = 512 * 1024  # more than a grammar may have: descriptions do not count there
ANY_OBJECT = AskedGrammar(AskedKind.JSON_SCHEMA, '{"type":"object"}')
_WANTED = "`json`, `json_object`, `json_schema` or `regex`"


def tgi_grammar(value: object, *, field: str = "grammar") -> AskedGrammar | None:
    """`{"type", "value"}` of the field, as TGI's clients write a grammar; None for null.

    Raises ValidationFailed for another shape.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _refuse(field, f'must be an object {{"type", "value"}}, found {_kind(value)}')
    kind, text = value.get("type"), value.get("value")
    if kind == "json_object" and text is None:
        return ANY_OBJECT
    if kind not in ("json", "json_object", "json_schema", "regex"):
        raise _refuse(f"{field}.type", f"must be {_WANTED}, found {_shown(kind)}")
    if text is None:
        raise _refuse(f"{field}.value", f"is missing: `{kind}` needs one")
    if kind == "regex":
        return regex_grammar(text, field=f"{field}.value")
    if kind == "json_schema":
        if not isinstance(text, dict) or text.get("schema") is None:
            raise _refuse(f"{field}.value", 'must be an object {"name", "schema"} for the type `json_schema`')
        return schema_grammar(text["schema"], field=f"{field}.value.schema")
    if kind == "json_object" and isinstance(text, dict):
        text = {"type": "object", **text}
    return schema_grammar(text, field=f"{field}.value")


def schema_grammar(schema: object, *, field: str, is_strict: bool = False) -> AskedGrammar:
    """A JSON schema, as object, true or false, or as a string that holds one. Raises ValidationFailed.

    Equal schemas give equal texts as long as their keys come in the same order, which is the order of the output.
    """
    if isinstance(schema, str):
        try:
            schema = parse_json(schema)
        except ValueError as error:
            raise _refuse(field, f"must be a JSON schema, found a string that is not JSON: {error}") from None
        except RecursionError:
            raise _refuse(field, "must be a JSON schema, found one that is nested too deeply") from None
    if schema is True:
        schema = {}
    if schema is False:
        raise _refuse(field, "must be a JSON schema that something matches, found false")
    if not isinstance(schema, dict):
        raise _refuse(field, f"must be a JSON schema, found {_kind(schema)}")
    try:
        return AskedGrammar(AskedKind.JSON_SCHEMA, dump_json(schema), field, is_strict)
    except RecursionError:
        raise _refuse(field, "must be a JSON schema, found one that is nested too deeply") from None


def regex_grammar(regex: object, *, field: str) -> AskedGrammar:
    """A regular expression that the whole output matches. Raises ValidationFailed."""
    if not isinstance(regex, str):
        raise _refuse(field, f"must be a regular expression as a string, found {_kind(regex)}")
    try:
        regex.encode()
    except UnicodeEncodeError as error:
        name = field.partition(".")[0]
        raise _refuse(name, f"must be text, found half a surrogate pair at character {error.start}") from None
    if (len(regex) - len(regex.rstrip("\\"))) % 2:
        raise _refuse(field, "must not end with a single backslash; write two for the character itself")
    return AskedGrammar(AskedKind.REGEX, regex, field)


def gbnf_grammar(text: object, *, field: str) -> AskedGrammar:
    """A grammar in GBNF, the language of llama.cpp. Raises ValidationFailed."""
    if not isinstance(text, str):
        raise _refuse(field, f"must be a grammar in GBNF as a string, found {_kind(text)}")
    _checked_gbnf(text, field)
    return AskedGrammar(AskedKind.GBNF, text, field)


def _checked_gbnf(text: str, field: str) -> LarkRules:
    if len(text) > MAX_GBNF_CHARACTERS:
        raise _refuse(field, f"must have at most {MAX_GBNF_CHARACTERS} characters, found {len(text)}")
    try:
        return read_gbnf(text, "gbnf")
    except BadGrammar as error:
        raise _refuse(field, f"must be a grammar in GBNF; {error}") from None


def _kind(value: object) -> str:
    names: dict[type[Any], str] = {str: "a string", list: "an array", bool: "a boolean", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a number")


def _shown(value: object) -> str:
    return f"`{value}`" if isinstance(value, str) else _kind(value)


def _refuse(field: str, message: str) -> ValidationFailed:
    return ValidationFailed(f"`{field}` {message}", field=field)
