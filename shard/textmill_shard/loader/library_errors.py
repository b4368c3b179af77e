"""Turns errors that libraries raise at files into errors that an operator understands."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from textmill_shard.errors import ModelError

_MAX_CHARACTERS = 400


@contextmanager
def as_model_error(make: Callable[[str], ModelError]) -> Iterator[None]:
    """Raise `make(what the library said)` for any exception but a ModelError.

    transformers and the libraries below raise classes of their own at each kind of fault in a file, and classes of
    Python where a value is of another kind than their code expects, so that no list of classes would be complete.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise make(in_one_line(error)) from error


def in_one_line(error: BaseException) -> str:
    """Give the class and the text of an exception, shortened where the text is long."""
    text = " ".join(str(error).split())
    if len(text) > _MAX_CHARACTERS:
        text = f"{text[:_MAX_CHARACTERS]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
