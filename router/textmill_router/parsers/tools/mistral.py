"""Mistral: `[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]`, or `[TOOL_CALLS]name{...}`."""

import re
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from textmill_router.parsers.tools.call_shape import CallShape, InOrder, JsonValue, Marker, WrittenCall
from textmill_router.parsers.tools.json_calls import ARGS, CALL_ID, JsonRules, json_reader, json_writer
from textmill_router.parsers.tools.tool_format import ToolFormat

_OPENING = "[TOOL_CALLS]"
_RULES = JsonRules(re.compile(r"\["), _OPENING, has_bare_names=True)
_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ID_CHARACTERS = 9  # the templates refuse ids of another length


def _named_call(name: str, schema: Mapping[str, Any]) -> WrittenCall:
    return WrittenCall(name, InOrder((Marker(ARGS), JsonValue(schema))))


_LIST = CallShape(json_writer("arguments"), opening=_OPENING, before="[", after="]", between=", ", is_list=True)
_NAMED = CallShape(_named_call, opening=_OPENING)


def _shape(tokens: Collection[str]) -> CallShape:
    """Return the shape of named calls for vocabularies with the token [ARGS], because their models write names."""
    return _NAMED if ARGS in tokens else _LIST


def _new_id(name: str, index: int) -> str:
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_CHARACTERS))


MISTRAL = ToolFormat(
    name="mistral",
    markers=(_OPENING, CALL_ID, ARGS),
    is_taught_by=lambda template: _OPENING in template,
    new_reader=json_reader(_RULES),
    shape=_shape,
    new_id=_new_id,
)
