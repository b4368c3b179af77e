"""The grammar that a body asks for, in a field of OpenAI, vLLM, sglang, llama.cpp or TGI."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from textmill_router.api.openai.response_format import RESPONSE_FORMAT, grammar_of
from textmill_router.api.openai.types import OpenAIBody
from textmill_router.errors import ValidationFailed
from textmill_router.grammar.request_forms import (
    ANY_OBJECT,
    AskedGrammar,
    gbnf_grammar,
    regex_grammar,
    schema_grammar,
    tgi_grammar,
)

_SPECIAL = frozenset("\\.+*?()|[]{}^$")  # characters that mean more than themselves in a regular expression


@dataclass(frozen=True, slots=True)
class AnswerGrammar:
    """The grammar that an answer must match, and the field of the body that asks for it."""

    grammar: AskedGrammar
    body_field: str


def answer_grammar(body: OpenAIBody) -> AnswerGrammar | None:
    """Return the grammar that a body asks for, or None where the answer is free.

    Raises ValidationFailed for a value of no known shape, and for two fields that each ask for a grammar.
    """
    found: list[AnswerGrammar] = []
    for name, read in _READERS.items():
        value = getattr(body, name, None)
        if value is None or value == "":
            continue
        grammar = read(value, name)
        if grammar is not None:
            found.append(AnswerGrammar(grammar, name))
    if len(found) > 1:
        names = " and ".join(f"`{one.body_field}`" for one in found)
        raise _refuse(found[1].body_field, f"{names} exclude each other: an answer matches one grammar; leave one out")
    return found[0] if found else None


def _of_grammar(value: object, field: str) -> AskedGrammar | None:
    """Read TGI's object, or llama.cpp's text in GBNF."""
    if isinstance(value, str):
        return _of_gbnf(value, field)
    return tgi_grammar(value, field=field)


def _of_schema(value: object, field: str) -> AskedGrammar:
    return schema_grammar(value, field=field)


def _of_regex(value: object, field: str) -> AskedGrammar:
    return regex_grammar(value, field=field)


def _of_choice(value: object, field: str) -> AskedGrammar:
    """Read vLLM's list of texts, of which the answer is one."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
        raise _refuse(field, f"`{field}` must be an array of texts that are not empty, with at least one text")
    quoted = ("".join(f"\\{one}" if one in _SPECIAL else one for one in text) for text in value)
    return regex_grammar("|".join(f"({text})" for text in quoted), field=field)


def _of_gbnf(value: object, field: str) -> AskedGrammar:
    return gbnf_grammar(value, field=field)


def _of_any_object(value: object, field: str) -> AskedGrammar | None:
    if not isinstance(value, bool):
        raise _refuse(field, f"`{field}` must be true or false")
    return ANY_OBJECT if value else None


def _of_structured_outputs(value: object, field: str) -> AskedGrammar | None:
    """Read vLLM's object, of which one key says what the answer must match."""
    if not isinstance(value, dict):
        raise _refuse(field, f"`{field}` must be an object")
    given = {key: one for key, one in value.items() if one is not None and one is not False}
    for key in given:
        if key not in _STRUCTURED:
            known = ", ".join(f"`{name}`" for name in _STRUCTURED)
            raise _refuse(f"{field}.{key}", f"`{field}.{key}` is not supported; the keys are {known}")
    if len(given) != 1:
        raise _refuse(field, f"`{field}` must have one key that says what the answer must match, found {len(given)}")
    [(key, one)] = given.items()
    return _STRUCTURED[key](one, f"{field}.{key}")


_Reader = Callable[[Any, str], AskedGrammar | None]
_STRUCTURED: Mapping[str, _Reader] = {
    "json": _of_schema,
    "json_object": _of_any_object,
    "regex": _of_regex,
    "choice": _of_choice,
    "grammar": _of_gbnf,
}
_READERS: Mapping[str, _Reader] = {
    RESPONSE_FORMAT: lambda value, field: grammar_of(value),
    "grammar": _of_grammar,
    "structured_outputs": _of_structured_outputs,  # vLLM
    "guided_json": _of_schema,
    "guided_regex": _of_regex,
    "guided_choice": _of_choice,
    "guided_grammar": _of_gbnf,
    "json_schema": _of_schema,  # llama.cpp and sglang
    "regex": _of_regex,  # sglang
    "ebnf": _of_gbnf,  # sglang
}


def _refuse(field: str, message: str) -> ValidationFailed:
    return ValidationFailed(message, field=field)
