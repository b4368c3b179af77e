"""Whether an answer that ended by itself is what was asked for: the last net behind the grammar."""

import json
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable

from textmill_router.errors import GenerationBroke, ValidationFailed
from textmill_router.exact_json import MAX_EXACT_EXPONENT, DoubleKey, decimal_of_text, is_whole, parse_pairs
from textmill_router.grammar.request_forms import AskedGrammar, AskedKind
from textmill_router.grammar.schema.backtracking import NoPattern, PatternTooDear
from textmill_router.grammar.schema.patterns import pattern
from textmill_router.grammar.schema.references import MAPS, VALUES

# Keywords of a schema, and the entries under them, looked at in one check: so many take the event loop 0.4 s. A short
# schema can have branches without end: of thirty definitions each refers to the next one twice.
MAX_CHECK_STEPS = 30_000
STEPS_PER_S = 75_000  # what the time of a pattern counts as
_MAX_INTEGER_DIGITS = 4_000  # Python turns no longer text into an integer

_Keyword = Callable[[Any, Any, Any, Any], Any]


def check_answer(text: str, grammar: AskedGrammar) -> None:
    """Whether an answer that ended by itself is the JSON that was asked for. Raises GenerationBroke."""
    if grammar.kind is not AskedKind.JSON_SCHEMA:
        return
    try:
        value = _decimals(text, object_pairs_hook=parse_pairs)
    except DoubleKey as error:
        raise GenerationBroke(f"in the answer {error}; try again") from None
    except (ValueError, RecursionError) as error:
        raise GenerationBroke(f"the answer is not JSON ({error}); try again") from None
    try:
        _checker(grammar.text).check(value)
    except ValidationError as error:
        raise GenerationBroke(f"the answer does not match the schema at {error.json_path}; try again") from None
    except BaseException as error:
        # A library in Rust panics where Python's recursion ends inside that library.
        if not isinstance(error, _UNTOLD) and type(error).__name__ != "PanicException":
            raise
        # A check without end, a `$id` that is no text, a number that is none: the grammar knows how to read the schema.
        if keywords := _weakened(grammar):
            message = f"whether the answer matches {keywords} cannot be checked; make the schema simpler"
            raise GenerationBroke(message) from None


def _weakened(grammar: AskedGrammar) -> str:
    """The keywords that the grammar leaves to this check, for a sentence."""
    try:
        return ", ".join(f"`{keyword}`" for keyword in sorted(grammar.rules().weakened))
    except ValidationFailed:
        return ""  # no grammar was made, so nothing was left to this check


class _TooDear(Exception):
    """A check would look at more than `MAX_CHECK_STEPS`."""


# What says nothing of the answer.
_UNTOLD = (
    *(_TooDear, NoPattern, PatternTooDear, RecursionError, Unresolvable),
    *(ArithmeticError, AttributeError, TypeError),
)


class _Checker:
    """One schema, ready for answers. It fetches nothing.

    Numbers are decimal and of any length, as in the grammar. Patterns are tried by the engine of the grammar, and those
    that this engine cannot read by one under a time limit, because such an engine can take for ever over a client's
    pattern.
    """

    def __init__(self, schema_text: str) -> None:
        """Raises AttributeError or TypeError where `$schema` is no text."""
        self._schema = _decimals(schema_text)
        self._names_patterns = '"patternProperties"' in schema_text
        kind = validator_for(self._schema, default=Draft202012Validator)
        keywords = {name: self._counted(keyword) for name, keyword in kind.VALIDATORS.items()}
        keywords |= {"pattern": self._counted(self._pattern), "multipleOf": self._counted(_multiple_of)}
        for key, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if key in keywords:
                keywords[key] = _exclusive(bound, keywords[key])
        types = kind.TYPE_CHECKER.redefine("integer", _is_integer)
        self._validator_type = extend(kind, keywords, type_checker=types)
        self._validator: Validator = self._validator_type(self._schema, registry=REGISTRY)
        self._num_steps = 0

    def check(self, value: Any) -> None:
        """Raises ValidationError; what `check_answer` catches besides, where there is no telling."""
        self._num_steps = 0
        validator = self._validator
        if self._names_patterns:
            keys = list(dict.fromkeys(_keys(value)))
            validator = self._validator_type(self._with_names(self._schema, keys), registry=REGISTRY)
        validator.validate(value)

    def _with_names(self, schema: Any, keys: list[str]) -> Any:
        """The schema with the keys that match a pattern named as properties, so that no pattern of keys is left."""
        if isinstance(schema, list):
            return [self._with_names(entry, keys) for entry in schema]
        if not isinstance(schema, dict):
            return schema
        result: dict[str, Any] = {}
        for name, entry in schema.items():
            if name in MAPS and isinstance(entry, dict):
                result[name] = {key: self._with_names(inner, keys) for key, inner in entry.items()}
            else:
                result[name] = entry if name in VALUES else self._with_names(entry, keys)
        patterns = schema.get("patternProperties")
        if isinstance(patterns, dict):
            properties = dict(result.get("properties", {}))
            for expression, rewritten in result.pop("patternProperties").items():
                self._count(len(keys))
                for key in keys:
                    if self._is_found(expression, key):
                        beside = properties.get(key, True)
                        properties[key] = rewritten if beside is True else {"allOf": [beside, rewritten]}
            result["properties"] = properties
        return result

    def _pattern(self, validator: Any, expression: Any, instance: Any, _: Any) -> Any:
        if validator.is_type(instance, "string") and not self._is_found(expression, instance):
            yield ValidationError(f"{instance!r} does not match {expression!r}")

    def _is_found(self, expression: str, text: str) -> bool:
        started_s = time.thread_time()
        found = pattern(expression).is_in(text)
        self._count(int((time.thread_time() - started_s) * STEPS_PER_S))
        return found

    def _count(self, num_steps: int) -> None:
        self._num_steps += num_steps
        if self._num_steps > MAX_CHECK_STEPS:
            raise _TooDear

    def _counted(self, keyword: _Keyword) -> _Keyword:
        def look(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
            self._count(1 + (len(wanted) if isinstance(wanted, list | dict) else 0))
            return keyword(validator, wanted, instance, schema)

        return look


@lru_cache(maxsize=64)
def _checker(schema_text: str) -> _Checker:
    return _Checker(schema_text)


def _decimals(text: str, **options: Any) -> Any:
    """The value of a JSON text; numbers with a fraction or an exponent are decimals. Raises ValueError."""
    return json.loads(text, parse_float=decimal_of_text, parse_int=_whole, parse_constant=_refuse_constant, **options)


def _whole(text: str) -> int | Decimal:
    return int(text) if len(text) <= _MAX_INTEGER_DIGITS else Decimal(text)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _is_integer(_: Any, instance: Any) -> bool:
    if isinstance(instance, Decimal):
        return is_whole(instance)
    return isinstance(instance, int) and not isinstance(instance, bool)


def _exclusive(bound: str, keyword: Callable[..., Any]) -> Callable[..., Any]:
    """The keyword, or, where the value is the true or false of draft 4, whether the bound beside it is left out."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if not isinstance(value, bool):
            yield from keyword(validator, value, instance, schema) or ()
        elif value and validator.is_type(instance, "number") and instance == schema.get(bound):
            yield ValidationError(f"{instance} is the {bound}, which is left out")

    return check


def _multiple_of(validator: Any, step: Any, instance: Any, _: Any) -> Any:
    if not validator.is_type(instance, "number"):
        return
    numbers = (instance, step)
    if any(isinstance(number, Decimal) and abs(number.adjusted()) > MAX_EXACT_EXPONENT for number in numbers):
        yield ValidationError(f"{instance} is too long to be divided")
    elif Fraction(instance) % Fraction(step):
        yield ValidationError(f"{instance} is not a multiple of {step}")


def _keys(value: Any) -> Iterator[str]:
    """All keys of all objects of a value."""
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, dict):
            yield from entry
            waiting += entry.values()
        elif isinstance(entry, list):
            waiting += entry
