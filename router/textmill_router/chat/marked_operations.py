"""Jinja's operations on texts with marks: filters, `in`, `~`, and methods of texts that are given texts with marks.

Python's text functions read the characters of a `MarkedText` with its marks where the text is an argument. Here such
an operation becomes one of `MarkedText` itself.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from textmill_router.chat.marked_text import MARK, MarkedText, plain, with_marks_hidden

# Names of filters that no template can write.
_IN, _JOINED = "a in b", "a ~ b"
# Filters that search their text by expressions: they get the text without marks, and what they give is all marked.
_SEARCHING_FILTERS = frozenset(
    {
        *("escape", "e", "filesizeformat", "float", "forceescape", "format", "indent", "int", "pprint", "striptags"),
        *("title", "truncate", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr"),
    }
)


def teach(environment: jinja2.Environment) -> None:
    """Make all filters and tests of the environment, and its joins, see texts without marks."""
    for name, apply in environment.filters.items():
        environment.filters[name] = (_searching if name in _SEARCHING_FILTERS else _seeing)(apply)
    environment.tests["in"] = is_in
    environment.filters[_IN] = is_in
    environment.filters[_JOINED] = join
    environment.concat = join  # type: ignore[method-assign]


def is_in(part: Any, whole: Any) -> bool:
    """`part in whole`."""
    if isinstance(part, MarkedText) and type(whole) is str:
        return part.clean in whole
    return part in whole


def join(parts: Iterable[Any]) -> str:
    """`a ~ b ~ c`, and the text of a macro or a block."""
    return with_marks_hidden("".join(map(str, parts)))  # type: ignore[no-any-return]


def bound_to_marked_text(method: Any, args: Iterable[Any]) -> Any:
    """Return the method of a text without marks as one of MarkedText, where an argument of the call has marks."""
    text = getattr(method, "__self__", None)
    if type(text) is str and any(plain(value) is not value for value in args if isinstance(value, str | tuple)):
        return getattr(MarkedText(text), method.__name__, method)
    return method


class OperatorsAsFilters(NodeTransformer):
    """Puts the filters above in the place of `in`, `not in` and `~`, which Jinja compiles to Python's own."""

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if len(node.ops) != 1 or node.ops[0].op not in ("in", "notin"):
            return node
        found = _filter(_IN, node.expr, [node.ops[0].expr], node.lineno)
        return found if node.ops[0].op == "in" else nodes.Not(found, lineno=node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(_JOINED, nodes.List(node.nodes, lineno=node.lineno), [], node.lineno)


def _filter(name: str, value: nodes.Expr, args: list[nodes.Expr], line: int) -> nodes.Filter:
    return nodes.Filter(value, name, args, [], None, None, lineno=line)


def _seeing(apply: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose texts are all MarkedText if one of them is, and whose result hides the marks of its parts."""

    @functools.wraps(apply)
    def seeing(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, MarkedText) for value in args):
            args = tuple(MarkedText(value) if type(value) is str else value for value in args)
        return with_marks_hidden(apply(*args, **kwargs))

    return seeing


def _searching(apply: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that gets its texts without marks."""

    @functools.wraps(apply)
    def searching(*args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(value, MarkedText) for value in args):
            return with_marks_hidden(apply(*args, **kwargs))
        found = apply(*map(plain, args), **kwargs)
        return MarkedText.all_marked(found.replace(MARK, "")) if isinstance(found, str) else found

    return searching
