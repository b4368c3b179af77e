"""One route as the OpenAPI document describes it."""

from dataclasses import dataclass
from typing import Any

from textmill_router.api.openapi import answer_types as answers


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `events` is the type of one event of a stream; `text` says that the answer is text.

    The path may have a parameter in braces, and `{name:path}` takes slashes too. `is_shown` says that the document has
    the operation. With `query` the body may also be a file. A type is one that msgspec can describe, or a tuple of
    types of which one holds.
    """

    path: str
    method: str
    summary: str
    body: Any = None
    answer: Any = None
    events: Any = None
    text: bool = False
    errors: tuple[int, ...] = ()
    example: Any = None
    error: Any = answers.ErrorResponse
    operation_id: str = ""
    parameters: tuple[str, ...] = ()  # in the path
    is_shown: bool = True
    query: Any = None  # of a body that is a file: the struct whose plain fields may stand in the address
    form: Any = None  # of a body that is a form: the struct of the fields beside the file
    form_file: str = ""  # the field of the file
    answer_types: tuple[str, ...] = ()  # media types of an answer that is a file
