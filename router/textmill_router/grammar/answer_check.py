"""Whether an answer that ended by itself is what was asked for: the last net behind the grammar."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable

from textmill_router.errors import GenerationBroke
from textmill_router.grammar.request_forms import AskedGrammar, AskedKind

# Keywords of a schema, and the entries under them, looked at in one check: so many take the event loop 0.4 s. A short
# schema can have branches without end: of thirty definitions each refers to the next one twice.
MAX_CHECK_STEPS = 30_000

_Keyword = Callable[[Any, Any, Any, Any], Any]


def check_answer(text: str, grammar: AskedGrammar) -> None:
    """Whether an answer that ended by itself is the JSON that was asked for. Raises GenerationBroke."""
    if grammar.kind is not AskedKind.JSON_SCHEMA:
        return
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise GenerationBroke(f"the answer is not JSON ({error}); try again") from None
    try:
        _checker(grammar.text).check(value)
    except ValidationError as error:
        raise GenerationBroke(f"the answer does not match the schema at {error.json_path}; try again") from None
    except (_TooDear, RecursionError):
        return  # the grammar has held it to the schema token by token
    except (Unresolvable, AttributeError, TypeError):
        return  # a reference, or a `$id` that is no text, that the grammar knows how to read


class _TooDear(Exception):
    """A check would look at more than `MAX_CHECK_STEPS`."""


class _Checker:
    """One schema, ready for answers. It fetches nothing.

    Patterns are left to the grammar: Python's engine can take for ever over a client's pattern.
    """

    def __init__(self, schema_text: str) -> None:
        """Raises AttributeError or TypeError where `$schema` is no text."""
        schema = msgspec.json.decode(schema_text)
        if "patternProperties" in schema_text:
            schema = {} if schema is True or schema.get("type") != "object" else {"type": "object"}
        kind = validator_for(schema, default=Draft202012Validator)
        keywords = {name: self._counted(keyword) for name, keyword in kind.VALIDATORS.items()}
        self._validator: Validator = extend(kind, {**keywords, "pattern": _no_check})(schema, registry=REGISTRY)
        self._num_steps = 0

    def check(self, value: Any) -> None:
        """Raises ValidationError, Unresolvable, _TooDear and RecursionError; AttributeError and TypeError for `$id`."""
        self._num_steps = 0
        self._validator.validate(value)

    def _counted(self, keyword: _Keyword) -> _Keyword:
        def look(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
            self._num_steps += 1 + (len(wanted) if isinstance(wanted, list | dict) else 0)
            if self._num_steps > MAX_CHECK_STEPS:
                raise _TooDear
            return keyword(validator, wanted, instance, schema)

        return look


@lru_cache(maxsize=64)
def _checker(schema_text: str) -> _Checker:
    return _Checker(schema_text)


def _no_check(*_: Any) -> None:
    return None
