"""Writes calls with each parameter in tags of its own as data for grammars, for formats of `TagRules`."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from textmill_router.errors import ValidationFailed
from textmill_router.parsers.tools.call_shape import (
    InOrder,
    JsonValue,
    LeftToCheck,
    Marker,
    Maybe,
    OneOf,
    Piece,
    Repeated,
    Text,
    TextUntil,
    WrittenCall,
)
from textmill_router.parsers.tools.parameter_values import NULLS, is_string
from textmill_router.parsers.tools.parameters import Parameter, Parameters
from textmill_router.parsers.tools.string_formats import STRING_FORMATS
from textmill_router.parsers.tools.tagged_parameters import TagRules

# Keywords that can forbid a string, beside those that the grammar holds.
_UNHELD = frozenset({"not", "if", "allOf", "anyOf", "oneOf", "$dynamicRef", "$recursiveRef"})


def tag_writer(rules: TagRules) -> Callable[[str, Mapping[str, Any]], WrittenCall]:
    """Return the writer of calls of these rules, with the parameters in the order of the schema.

    The writer raises ValidationFailed for what has no form.
    """
    return lambda name, schema: _Writer(rules, name, schema).write()


class _Writer:
    """Writes the calls of one tool."""

    def __init__(self, rules: TagRules, name: str, schema: Mapping[str, Any]) -> None:
        self._rules = rules
        self._name = name
        self._parameters = Parameters(schema)
        self._line = "\n" if rules.has_lines else ""

    def write(self) -> WrittenCall:
        rules = self._rules
        if not rules.is_name(self._name):
            raise self._refusal("its name", "holds a sign that ends a name")
        declared = self._parameters.declared(self._name)
        pieces: list[Piece] = []
        for parameter in declared:
            if not rules.is_key(parameter.name):
                if parameter.is_required:
                    raise self._refusal(
                        f"the name of the parameter {parameter.name!r}", "holds a sign that ends a name"
                    )
                continue
            piece = self._parameter(InOrder((Text(parameter.name), Marker(rules.end_of_key))), parameter)
            pieces.append(piece if parameter.is_required else Maybe(piece))
        if not declared and self._parameters.others is not None:
            key = TextUntil(rules.end_of_key, ("[A-Za-z_][A-Za-z0-9_.-]{0,63}",))
            others = Parameter("", self._parameters.others, False)
            pieces.append(Repeated(self._parameter(key, others)))
        head = f"{rules.call}{self._name}{rules.end_of_name}\n"
        return WrittenCall(head, InOrder((*pieces, Text(rules.end_of_call))))

    def _parameter(self, key: Piece, parameter: Parameter) -> Piece:
        rules = self._rules
        before: tuple[Piece, ...] = (Text("\n"), Marker(rules.value)) if rules.value else (Text(self._line),)
        return InOrder((Marker(rules.key), key, *before, self._value(parameter), Text("\n")))

    def _value(self, parameter: Parameter) -> Piece:
        """Return a value and its closing tag. A string that may be of another type too is JSON, in quotes."""
        types = self._parameters.types_of(parameter.name)
        end = (Text(self._line), Marker(self._rules.end_of_value))
        what = f"the parameter {parameter.name!r}"
        if not is_string(types):
            return InOrder((JsonValue(parameter.schema), *end))
        rules = self._parameters.string_rules(parameter.name)
        if rules is None:
            raise self._refusal(what, "has several alternatives with rules for strings")
        unheld = tuple(sorted(rules.keys() & _UNHELD))
        if "const" in rules or "enum" in rules:
            words = self._words(rules, types)
            if not words:
                raise self._refusal(what, "has no value that can be written")
            held = rules.keys() & {"pattern", "format", "minLength", "maxLength"}
            return InOrder((LeftToCheck((*unheld, *sorted(held))), OneOf(tuple(map(Text, words))), *end))
        expressions = [f"({expression}){self._line}" for expression in self._expressions(rules, what)]
        text = TextUntil(self._rules.end_of_value, tuple(expressions) or (f"(?s:.*){self._line}",))
        return InOrder((LeftToCheck(unheld), text))

    def _words(self, rules: Mapping[str, Any], types: frozenset[str]) -> list[str]:
        """Return the values that a schema lists, in so far as they can be written."""
        allowed = rules["enum"] if "enum" in rules else [rules["const"]]
        if "const" in rules:
            allowed = [value for value in allowed if value == rules["const"]]
        words = [value for value in allowed if self._can_be_said(value, types)]
        return words + ["null"] * ("null" in types)

    def _can_be_said(self, value: object, types: frozenset[str]) -> bool:
        ends = (self._rules.end_of_value, self._rules.end_of_call, self._rules.closing)
        if not isinstance(value, str) or any(end and end in value for end in ends):
            return False
        return not ("null" in types and value in NULLS)

    def _expressions(self, rules: Mapping[str, Any], what: str) -> list[str]:
        """Return the expressions that a string matches, one for each rule."""
        expressions = []
        if rules.keys() & {"minLength", "maxLength"}:
            least, most = rules.get("minLength", 0), rules.get("maxLength", "")
            if not (isinstance(least, int) and (most == "" or isinstance(most, int))):
                raise self._refusal(what, "has a length that is no whole number")
            expressions.append(rf"(?s:.{{{least},{most}}})")
        if "pattern" in rules:
            expressions.append(self._whole_pattern(str(rules["pattern"])))
        if known := STRING_FORMATS.get(str(rules.get("format"))):
            expressions.append(known)
        return expressions

    def _whole_pattern(self, pattern: str) -> str:
        """Return an expression that matches the whole of a string in which the pattern is found."""
        begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
        inner = pattern[begins : len(pattern) - ends]
        bare = re.sub(r"\\.|\[\^?[^\]]*\]", "", inner)
        if "^" in bare or "$" in bare or ((begins or ends) and "|" in bare):
            raise self._refusal(f"the pattern {pattern!r}", "has an anchor inside")
        return f"{'' if begins else '(?s:.*)'}({inner}){'' if ends else '(?s:.*)'}"

    def _refusal(self, what: str, why: str) -> ValidationFailed:
        return ValidationFailed(
            f"the tool `{self._name}` cannot be enforced in this model's format: {what} {why}", field="tools"
        )
