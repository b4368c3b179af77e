"""Finds the words that a field of a JSON body may hold, for the error of a word that is none of them."""

import re
from collections.abc import Iterator
from typing import Any

from msgspec import inspect

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def words_at(body_type: Any, path: str) -> list[str]:
    """Return the words that `body_type` allows at a path of field names and places in arrays, in alphabetical order.

    Empty where the type has no list of words there.
    """
    kinds = list(_members(inspect.type_info(body_type)))
    for name, place in _STEP.findall(path):
        kinds = [member for kind in kinds for below in _below(kind, name, place) for member in _members(below)]
    words = [value for kind in kinds if isinstance(kind, inspect.LiteralType) for value in kind.values]
    return [word for word in words if isinstance(word, str)]


def _members(kind: inspect.Type) -> Iterator[inspect.Type]:
    yield from kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _below(kind: inspect.Type, name: str, place: str) -> Iterator[inspect.Type]:
    """Yield the type of a field, or of an entry."""
    if place and isinstance(kind, inspect.ListType | inspect.VarTupleType):
        yield kind.item_type
    elif isinstance(kind, inspect.StructType):
        yield from (field.type for field in kind.fields if field.encode_name == name)
    elif isinstance(kind, inspect.DictType):
        yield kind.value_type
