"""The shapes in which a request says what its output must match, of both dialects."""

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any

from textmill_router.errors import ValidationFailed
from textmill_router.grammar.lark import json_rule, regex_rule
from textmill_router.request import Grammar


class AskedKind(Enum):
    """The language in which a request says what its output must match."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"


@dataclass(frozen=True, slots=True)
class AskedGrammar:
    """What a request asks of its output, in the request's own language; `text` is a schema or an expression."""

    kind: AskedKind
    text: str

    def rule(self) -> str:
        """The right side of a Lark rule that matches it."""
        return json_rule(self.text) if self.kind is AskedKind.JSON_SCHEMA else regex_rule(self.text)

    def whole_output(self) -> Grammar:
        """The grammar of an output that is this and nothing else."""
        return Grammar(f"start: {self.rule()}")


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
    return schema_grammar(text, field=f"{field}.value")


def whole_output_grammar(value: object) -> Grammar | None:
    """What `tgi_grammar` reads, as the grammar of the whole output; None for null. Raises ValidationFailed."""
    asked = tgi_grammar(value)
    return None if asked is None else asked.whole_output()


def schema_grammar(schema: object, *, field: str) -> AskedGrammar:
    """A JSON schema, as object, true or false, or as a string that holds one. Raises ValidationFailed.

    Equal schemas give equal texts as long as their keys come in the same order, which is the order of the output.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
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
        return AskedGrammar(AskedKind.JSON_SCHEMA, json.dumps(schema, separators=(",", ":")))
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
    return AskedGrammar(AskedKind.REGEX, regex)


def _kind(value: object) -> str:
    names: dict[type[Any], str] = {str: "a string", list: "an array", bool: "a boolean", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a number")


def _shown(value: object) -> str:
    return f"`{value}`" if isinstance(value, str) else _kind(value)


def _refuse(field: str, message: str) -> ValidationFailed:
    return ValidationFailed(f"`{field}` {message}", field=field)
