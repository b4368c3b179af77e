"""Reads the `response_format` of /v1 in OpenAI's shapes and TGI's."""

from typing import Any

from textmill_router.errors import ValidationFailed
from textmill_router.grammar.request_forms import ANY_OBJECT, AskedGrammar, schema_grammar, tgi_grammar

RESPONSE_FORMAT = "response_format"  # the field
# OpenAI's types, and those of TGI.
_TYPES = ("text", "json_object", "json_schema", "json", "regex")
# The keys that say what the answer of a type must match. An answer matches one of them.
_KEYS: dict[str, tuple[str, ...]] = {
    "text": (),
    "json_object": ("schema", "value"),
    "json_schema": ("json_schema", "schema", "value"),
    "json": ("value",),
    "regex": ("value",),
}
_SCHEMA_KEYS = ("name", "description", "schema", "strict")  # of `json_schema`
_WANTED = "`text`, `json_object`, `json_schema`, or TGI's `json` or `regex`"


def grammar_of(response_format: dict[str, Any] | None) -> AskedGrammar | None:
    """The form that the answer must match; None where it is free. Raises ValidationFailed for an unknown shape."""
    if response_format is None:
        return None
    _check_keys(response_format)
    if response_format.get("type") == "text":
        return None
    json_schema = response_format.get("json_schema")
    schema = response_format.get("schema")  # llama.cpp and others have the schema beside the type
    if json_schema is None and schema is not None and response_format.get("type") in ("json_object", "json_schema"):
        if response_format["type"] == "json_object" and isinstance(schema, dict):
            schema = {"type": "object", **schema}
        return schema_grammar(schema, field=f"{RESPONSE_FORMAT}.schema")
    kind = response_format.get("type")
    if kind not in _TYPES:
        found = f"`{kind}`" if isinstance(kind, str) else "none" if kind is None else "a value that is no text"
        path = f"{RESPONSE_FORMAT}.type"
        raise ValidationFailed(f"`{path}` must be {_WANTED}, found {found}", field=path)
    if kind == "json_schema" and json_schema is None and response_format.get("value") is None:
        path = f"{RESPONSE_FORMAT}.json_schema"
        raise ValidationFailed(f'`{path}` is missing: the type `json_schema` needs {{"name", "schema"}}', field=path)
    if kind != "json_schema" or json_schema is None:
        return tgi_grammar(response_format, field=RESPONSE_FORMAT)
    if not isinstance(json_schema, dict):
        path = f"{RESPONSE_FORMAT}.json_schema"
        raise ValidationFailed(f'`{path}` must be an object {{"name", "schema"}}', field=path)
    field = f"{RESPONSE_FORMAT}.json_schema.schema"
    strict = json_schema.get("strict")
    if strict is not None and not isinstance(strict, bool):
        path = f"{RESPONSE_FORMAT}.json_schema.strict"
        raise ValidationFailed(f"`{path}` must be true or false", field=path)
    if json_schema.get("schema") is None:
        others = sorted(key for key in json_schema if key not in _SCHEMA_KEYS)
        if others:
            raise ValidationFailed(
                f"`{field}` is missing: put `{others[0]}` and the rest of the schema there", field=field
            )
        return ANY_OBJECT
    return schema_grammar(json_schema["schema"], field=field, is_strict=strict is True)


def _check_keys(response_format: dict[str, Any]) -> None:
    """Raise ValidationFailed for a key that says what the answer must match and that this type does not read."""
    kind = response_format.get("type")
    if not isinstance(kind, str) or kind not in _KEYS:
        return  # the type itself is refused
    given = [key for key in ("json_schema", "schema", "value") if response_format.get(key) is not None]
    wrong = [key for key in given if key not in _KEYS[kind]] or given[1:]
    if wrong:
        path = f"{RESPONSE_FORMAT}.{wrong[0]}"
        beside = f" beside `{given[0]}`" if wrong == given[1:] and given[0] in _KEYS[kind] else ""
        raise ValidationFailed(f"`{path}` must not stand{beside} in the type `{kind}`; leave it out", field=path)
